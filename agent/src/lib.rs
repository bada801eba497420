//! The small SSH server that runs beside the user's process in a workspace pod.
