fn main() {
    for c in cluster::crds::all() { println!("---\n{}", serde_yaml_ng::to_string(&c).unwrap()); }
}
