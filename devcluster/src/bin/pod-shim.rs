//! The shim alone, for a node that runs outside the `dormouse` binary, and for tests.

fn main() -> std::process::ExitCode {
    devcluster::node::shim::main(std::env::args_os().skip(1))
}
