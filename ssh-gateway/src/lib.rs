//! Serves SSH: signs people in, wakes the workload, bridges each channel to the agent in the pod.
