//! Serves HTTP and WebSocket: the gate, and the engines behind it.
