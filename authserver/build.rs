//! A new migration is compiled in without a change to any source.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
