//! `list`: the images of a folder.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use super::load_images;
use crate::report::progress::human_bytes;
use crate::report::table;
use crate::spec::ImageSpec;
use crate::workspace::Workspace;

#[derive(Debug, Args)]
pub struct Arguments {
    /// Folder of image specs [default: the workspace's images/]
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// An image as it is listed.
#[derive(Debug, Serialize)]
struct Row<'set> {
    name: &'set str,
    filesystem: Option<&'static str>,
    min_size: u64,
    description: Option<&'set str>,
}

/// Lists what can be read, says what cannot, and fails if anything cannot.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let workspace = Workspace::find()?;
    let set = load_images(&workspace, arguments.images.as_ref())?;
    let rows: Vec<Row> = set.iter().filter_map(|(name, spec)| Some(row(name, spec.ok()?))).collect();
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&rows)?);
    } else {
        let cells: Vec<[String; 4]> = rows
            .iter()
            .map(|row| {
                [
                    row.name.to_owned(),
                    row.filesystem.unwrap_or("base").to_owned(),
                    if row.min_size > 0 { human_bytes(row.min_size) } else { String::new() },
                    row.description.unwrap_or_default().to_owned(),
                ]
            })
            .collect();
        print!("{}", table::columns(["image", "type", "min-size", "description"], &cells));
    }
    let errors = set.errors();
    if errors.0.is_empty() { Ok(ExitCode::SUCCESS) } else { Err(errors.into()) }
}

fn row<'set>(name: &'set str, spec: &'set ImageSpec) -> Row<'set> {
    Row {
        name,
        filesystem: spec.filesystem.as_ref().map(|filesystem| filesystem.kind().as_str()),
        min_size: spec.sizing.min_size,
        description: spec.description.as_deref(),
    }
}
