//! (in the making)
//!
//! Crash story: x
pub(crate) mod cgroup;
mod trace;
pub(crate) use trace::ptrace_is_allowed;
