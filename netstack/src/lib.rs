//! The single-IP switch and user-mode gateway as sans-I/O state machines.
