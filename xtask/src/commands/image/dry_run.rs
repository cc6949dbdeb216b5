//! `image --dry-run`: what would be built, and how.

use std::path::{Path, PathBuf};

use anyhow::Result;
use serde::Serialize;
use snug_ext4::size::SizePolicy;
use snug_formats::Filesystem;
use snug_spec::model::EngineKind;

use crate::bases::oci::Resolution;
use crate::commands::arguments;
use crate::engine::choose::{Choice, Engines};
use crate::error;
use crate::image::Order;
use crate::plan::{BuildPlan, Step};
use crate::report::render::Render;

/// The plans of all images of a command line.
#[derive(Debug, Serialize)]
pub(super) struct Plans {
    images: Vec<Plan>,
}

/// The plan of one image, or why it cannot be planned.
#[derive(Debug, Serialize)]
struct Plan {
    name: String,
    #[serde(flatten)]
    planned: Planned,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum Planned {
    Build(Box<Build>),
    Failure { error: String },
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Build {
    /// The image file; a base has none.
    image: Option<PathBuf>,
    engine: PlannedEngine,
    /// The registry's image that the tree is based on.
    oci: Option<Resolution>,
    filesystem: Option<Filesystem>,
    verity: bool,
    sizing: Sizing,
    fingerprint: String,
    trees: Vec<PlannedTree>,
    notes: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum PlannedEngine {
    Chosen { name: EngineKind, reason: String },
    Missing { error: String },
}

/// What the spec says about the size.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct Sizing {
    min_size_bytes: u64,
    max_size_bytes: Option<u64>,
    /// Factor of the content.
    headroom: f64,
    free_inodes: Option<u64>,
}

/// One tree of the chain that the image is based on, itself included.
#[derive(Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
struct PlannedTree {
    name: String,
    base: String,
    fingerprint: String,
    /// What docker and podman are given to build.
    #[serde(skip_serializing_if = "Option::is_none")]
    dockerfile: Option<String>,
    steps: Vec<PlannedStep>,
}

#[derive(Debug, Serialize)]
struct PlannedStep {
    step: String,
    /// `path:line` of the spec.
    place: String,
}

impl Plans {
    pub(super) fn new(
        names: &[String],
        orders: &[Result<Order>],
        engines: &Engines,
        wanted: &arguments::Engine,
        results: &Path,
    ) -> Result<Self> {
        let mut images = Vec::new();
        for (name, order) in names.iter().zip(orders) {
            let planned = match order {
                Ok(order) => Planned::Build(Box::new(build(order, engines, wanted, results)?)),
                Err(error) => Planned::Failure { error: error::in_full(error) },
            };
            images.push(Plan { name: name.clone(), planned });
        }
        Ok(Plans { images })
    }
}

fn build(order: &Order, engines: &Engines, wanted: &arguments::Engine, results: &Path) -> Result<Build> {
    let choice = engines.choose(wanted.kind, order.spec.engine);
    let script = |plan: &BuildPlan| choice.as_ref().ok().and_then(|choice| choice.engine.script(plan));
    let step = |step: &Step| PlannedStep { step: step.describe(), place: step.place.clone() };
    let tree = |plan: &BuildPlan| PlannedTree {
        name: plan.name.clone(),
        base: plan.base.describe(),
        fingerprint: plan.fingerprint.clone(),
        dockerfile: script(plan),
        steps: plan.steps.iter().map(step).collect(),
    };
    let trees = order.chain.iter().map(tree).collect();
    let engine = match &choice {
        Ok(Choice { engine, reason }) => PlannedEngine::Chosen { name: engine.kind(), reason: reason.clone() },
        Err(error) => PlannedEngine::Missing { error: error::in_full(error) },
    };
    Ok(Build {
        image: order.image(results),
        engine,
        oci: order.oci().cloned(),
        filesystem: order.filesystem.clone(),
        verity: order.verity,
        sizing: Sizing::new(&order.sizing),
        fingerprint: order.fingerprint()?,
        trees,
        notes: order.notes.clone(),
    })
}

impl Sizing {
    fn new(policy: &SizePolicy) -> Self {
        Sizing {
            min_size_bytes: policy.min_size,
            max_size_bytes: policy.max_size,
            headroom: f64::from(policy.headroom.millionths) / 1e6,
            free_inodes: policy.free_inodes,
        }
    }
}

impl Render for Plans {
    fn text(&self) -> String {
        let text = |plan: &Plan| match &plan.planned {
            Planned::Build(build) => build.text(&plan.name),
            // The error is on standard error.
            Planned::Failure { .. } => String::new(),
        };
        self.images.iter().map(text).collect()
    }
}

impl Build {
    fn text(&self, name: &str) -> String {
        let image = self.image.as_ref().map(|path| path.display().to_string());
        let mut text = format!("{name}: {}\n", image.as_deref().unwrap_or("a base without an image of its own"));
        text += &match &self.engine {
            PlannedEngine::Chosen { name, reason } => format!("  engine {name}, {reason}\n"),
            PlannedEngine::Missing { error } => format!("  engine: {error}\n"),
        };
        for tree in &self.trees {
            text += &format!("  {} from {}\n", tree.name, tree.base);
            for step in &tree.steps {
                text += &format!("    {}  ({})\n", step.step, step.place);
            }
            for line in tree.dockerfile.iter().flat_map(|script| script.lines()) {
                text += &format!("      | {line}\n");
            }
        }
        if let Some(filesystem) = &self.filesystem {
            text +=
                &format!("  as {}{}\n", filesystem.kind(), if self.verity { ", sealed with dm-verity" } else { "" });
        }
        for note in &self.notes {
            text += &format!("  {note}\n");
        }
        text
    }
}
