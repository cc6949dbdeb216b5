//! Which engine runs the steps: the one that was asked for, else the first that works on this host.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use anyhow::{Error, Result, anyhow, bail};
use snug_process::program::Missing;

use super::Engine;
use super::builtin::Builtin;
use super::container::Container;
use crate::cache::Cache;
use crate::error::{self, Failure};
use crate::plan::EngineKind;

/// The variable that names an engine where the command line does not.
const VARIABLE: &str = "SNUG_ENGINE";

/// The order in which engines are tried where none was asked for.
const PREFERENCE: [EngineKind; 3] = [EngineKind::Builtin, EngineKind::Docker, EngineKind::Podman];

/// An engine that works on this host, and why it was chosen.
#[derive(Clone)]
pub struct Choice {
    pub engine: Arc<dyn Engine>,
    /// For people: `the default`, or `--engine asks for it`.
    pub reason: String,
}

/// The engines of this host. Each is probed once, when it is first considered.
pub struct Engines {
    cache: Cache,
    /// The engine that SNUG_ENGINE names.
    variable: Option<EngineKind>,
    probed: Mutex<BTreeMap<EngineKind, Probed>>,
}

#[derive(Clone)]
struct Probed {
    engine: Arc<dyn Engine>,
    lack: Option<Lack>,
}

/// Why an engine does not work on this host.
#[derive(Clone)]
struct Lack {
    /// With what to do.
    text: String,
    /// The program that is missing, if that is why.
    missing: Option<Missing>,
}

impl Lack {
    fn of(error: &Error) -> Self {
        Lack { text: format!("{error:#}"), missing: error::missing(error).cloned() }
    }

    fn into_error(self) -> Error {
        self.missing.map_or_else(|| anyhow!(self.text), Error::from)
    }
}

impl Engines {
    pub fn new(cache: &Cache) -> Result<Self> {
        let variable = match std::env::var(VARIABLE) {
            Ok(text) if !text.is_empty() => {
                Some(text.parse().map_err(|error| Failure::Usage(format!("{VARIABLE}: {error}")))?)
            }
            _ => None,
        };
        Ok(Engines { cache: cache.clone(), variable, probed: Mutex::default() })
    }

    /// Returns the engine for one image: the command line's, else SNUG_ENGINE's, else the spec's, else the first that works.
    /// One that was asked for and does not work is an error: nothing else is tried in its place.
    pub fn choose(&self, command_line: Option<EngineKind>, spec: Option<EngineKind>) -> Result<Choice> {
        let asked = [(command_line, "--engine"), (self.variable, VARIABLE), (spec, "the spec")];
        if let Some((kind, who)) = asked.into_iter().find_map(|(kind, who)| Some((kind?, who))) {
            let Probed { engine, lack } = self.probe(kind);
            return match lack {
                None => Ok(Choice { engine, reason: format!("{who} asks for it") }),
                Some(lack) => {
                    let said = format!("{who} asks for the engine {kind}, which cannot work here");
                    Err(lack.into_error().context(said))
                }
            };
        }
        let mut lacks = Vec::new();
        for kind in PREFERENCE {
            let Probed { engine, lack } = self.probe(kind);
            let Some(lack) = lack else { return Ok(Choice { engine, reason: found(&lacks) }) };
            lacks.push((kind, lack.text));
        }
        let lacks: Vec<String> = lacks.iter().map(|(kind, lack)| format!("{kind}: {lack}")).collect();
        bail!("no engine can work here\n{}", lacks.join("\n"))
    }

    fn probe(&self, kind: EngineKind) -> Probed {
        let mut probed = self.probed.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        probed
            .entry(kind)
            .or_insert_with(|| {
                let engine = engine(kind, &self.cache);
                let lack = engine.probe().err().as_ref().map(Lack::of);
                Probed { engine, lack }
            })
            .clone()
    }
}

/// Returns the engine of this kind, whether or not it works on this host.
pub fn engine(kind: EngineKind, cache: &Cache) -> Arc<dyn Engine> {
    match kind {
        EngineKind::Builtin => Arc::new(Builtin::new(cache.clone())),
        EngineKind::Docker | EngineKind::Podman => Arc::new(Container::new(kind, cache.clone())),
    }
}

fn found(lacks: &[(EngineKind, String)]) -> String {
    if lacks.is_empty() {
        return "the default".to_owned();
    }
    let lacks: Vec<String> =
        lacks.iter().map(|(kind, lack)| format!("{kind}: {}", lack.lines().next().unwrap_or_default())).collect();
    format!("the first that can work here ({})", lacks.join("; "))
}
