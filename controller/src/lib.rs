//! Creates the Kubernetes resources, gathers activity and applies the idle verdict.
