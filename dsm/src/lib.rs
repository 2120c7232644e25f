//! The MSI write-invalidate protocol as a sans-I/O state machine, and the userfaultfd back end that enforces it.
