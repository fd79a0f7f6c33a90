//! The command line: one file per command, and `common/` for what they share.
//!
//! Every mistake of the user ends in one line `error: ...` that says what to do, and exit code 2. Results go to standard
//! output, progress and warnings to standard error.

mod common;
mod distill;
mod edit;
mod eval;
mod export;
mod info;
mod inpaint;
mod lora;
mod prepare;
mod pretrain;
mod sample;
mod study;
mod synthesize;
mod tasks;

use std::process::ExitCode;

use clap::error::ErrorKind;
use clap::{Parser, Subcommand};

use common::Globals;
pub use common::Stop;

/// Exit code of a mistake that the user can mend.
const MISTAKE: u8 = 2;
/// Exit code after Ctrl-C, as shells expect it.
const INTERRUPTED: u8 = 130;

/// LADD-Fast: distils a rectified-flow image transformer into a student that draws in 1-4 steps.
#[derive(Debug, Parser)]
#[command(name = "ladd-fast", version, propagate_version = true, max_term_width = 110, after_help = EXAMPLES)]
struct Cli {
    #[command(flatten)]
    globals: Globals,
    #[command(subcommand)]
    command: Command,
}

const EXAMPLES: &str = "\
Examples:
  ladd-fast distill                          the demo: under five minutes, no GPU, no download
  ladd-fast distill --preset demo-quick      the same in about a minute
  ladd-fast sample --network runs/NAME \"ankle boot\"
  ladd-fast info                             this machine, the presets, the built-in teacher";

#[derive(Debug, Subcommand)]
enum Command {
    Distill(distill::Arguments),
    Sample(sample::Arguments),
    Edit(edit::Arguments),
    Inpaint(inpaint::Arguments),
    Eval(eval::Arguments),
    Export(export::Arguments),
    Prepare(prepare::Arguments),
    Synthesize(synthesize::Arguments),
    Pretrain(pretrain::Arguments),
    Study(study::Arguments),
    Lora(lora::Arguments),
    Info(info::Arguments),
}

/// Entry point of the binary.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    conclude(cli.globals.prepare().map_err(Stop::from).and_then(|()| run(&cli)))
}

/// The exit code of what a command came to; success only if what it had to say was written.
fn conclude(outcome: Result<(), Stop>) -> ExitCode {
    match outcome.and_then(|()| common::output::check().map_err(Stop::from)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Stop::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(Stop::Error(error)) => {
            common::output::error(&error.to_string());
            ExitCode::from(MISTAKE)
        }
    }
}

fn run(cli: &Cli) -> Result<(), Stop> {
    match &cli.command {
        Command::Distill(arguments) => distill::run(&cli.globals, arguments),
        Command::Sample(arguments) => sample::run(&cli.globals, arguments),
        Command::Edit(arguments) => edit::run(&cli.globals, arguments),
        Command::Inpaint(arguments) => inpaint::run(&cli.globals, arguments),
        Command::Eval(arguments) => eval::run(&cli.globals, arguments),
        Command::Export(arguments) => export::run(&cli.globals, arguments),
        Command::Prepare(arguments) => prepare::run(&cli.globals, arguments),
        Command::Synthesize(arguments) => synthesize::run(&cli.globals, arguments),
        Command::Pretrain(arguments) => pretrain::run(&cli.globals, arguments),
        Command::Study(arguments) => study::run(&cli.globals, arguments),
        Command::Lora(arguments) => lora::run(&cli.globals, arguments),
        Command::Info(arguments) => info::run(&cli.globals, arguments),
    }
}

/// Prints help and version as they are, and what clap has to say about wrong arguments on one line.
fn refuse(error: &clap::Error) -> ExitCode {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        common::output::written(error.print());
        return conclude(Ok(()));
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = error.print();
        return ExitCode::from(MISTAKE);
    }
    let text = error.to_string();
    let parts =
        text.lines().map(str::trim).take_while(|l| !l.starts_with("Usage:")).filter(|l| !l.is_empty() && !l.starts_with("For more"));
    let line = parts.collect::<Vec<_>>().join("; ").replace(":; ", ": ");
    common::output::error(&format!("{}; see --help", line.trim_start_matches("error: ")));
    ExitCode::from(MISTAKE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_arguments_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_examples() {
        for command in Cli::command().get_subcommands() {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "{}", command.get_name());
        }
    }
}
