//! The node: pods as local processes, through a kube client alone.
