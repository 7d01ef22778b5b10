//! The binary `campanile`.

/// Sends are many small allocations on several threads: a quarter of their CPU time went into the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    campanile_ops::cli::main()
}
