use std::process::ExitCode;

fn main() -> ExitCode {
    snug::cli::main()
}
