//! The binary `campanile`.

fn main() -> std::process::ExitCode {
    campanile_ops::cli::main()
}
