//! The `ladd-fast` command: parses the arguments, runs one command, turns an error into one message and exit code 2.

use std::process::ExitCode;

fn main() -> ExitCode {
    ladd_fast::cli::main()
}
