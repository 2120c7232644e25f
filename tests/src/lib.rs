//! End-to-end scenarios over a real cluster, and the paper's evaluation.
