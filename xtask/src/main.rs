//! The developer's commands: `cargo xtask test`, and one per image.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use clap::{Parser, Subcommand};
use ssi_images::{Cache, Source, Ui, kernel, lab, root, tools};

/// The table of checks.
mod checks;
/// Checks of the project's own files.
mod house;
/// Licences of the dependencies.
mod licences;
/// Runs the table and reports.
mod runner;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "The developer's commands of ssivmm")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run all checks and tests, the same here and in CI
    Test(runner::Options),
    /// Build the guest kernel (six minutes on two cores, once)
    Kernel {
        /// Build in this tree, and only what changed; it is made from the pinned source if it does not exist
        #[arg(long)]
        tree: Option<PathBuf>,
        /// Only check that the pinned source is on this machine
        #[arg(long, conflicts_with = "tree")]
        check_source: bool,
    },
    /// Build the root image (a minute or two, once)
    Root,
    /// Build the guest programs and their image
    Tools,
    /// Build ssivmm and the initramfs of the emulated host
    Lab,
    /// Build all images
    Images,
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    let source = Source::find()?;
    let ui = Ui::detect();
    let cache = Cache::open()?;
    match command {
        Command::Test(options) => return runner::run(&source, &options),
        Command::Kernel { check_source: true, .. } => println!("{}", kernel::verify_source(&source)?),
        Command::Kernel { tree, .. } => {
            let built = match tree {
                Some(tree) => kernel::build_in_tree(&source, &tree, &ui)?,
                None => kernel::build(&cache, &source, &ui)?,
            };
            show(&[&built.vmlinux, &built.bzimage, &built.config])?;
        }
        Command::Root => show(&[&root::build(&cache, &ui)?])?,
        Command::Tools => show(&[&tools::build(&cache, &source, &ui)?])?,
        Command::Lab => show(&[&lab_image(&cache, &source, ui)?])?,
        Command::Images => {
            let images = ssi_images::build_all(&cache, &source, &ui)?;
            let lab = lab_image(&cache, &source, ui)?;
            show(&[&images.kernel.vmlinux, &images.kernel.bzimage, &images.root, &images.tools, &lab])?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Builds ssivmm, then the initramfs that holds it.
fn lab_image(cache: &Cache, source: &Source, ui: Ui) -> Result<PathBuf> {
    let status = std::process::Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(["build", "--release", "--package", "ssivmm"])
        .current_dir(source.root())
        .status()
        .context("cannot run cargo")?;
    if !status.success() {
        bail!("ssivmm does not compile");
    }
    lab::build(cache, &source.join("target/x86_64-unknown-linux-gnu/release/ssivmm"), &ui)
}

fn show(paths: &[&Path]) -> Result<()> {
    for path in paths {
        let bytes = std::fs::metadata(path).with_context(|| format!("{} is gone", path.display()))?.len();
        println!("{:>8.1} MiB  {}", bytes as f64 / f64::from(1 << 20), path.display());
    }
    Ok(())
}
