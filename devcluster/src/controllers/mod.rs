//! The control-plane controllers, through a kube client alone.
