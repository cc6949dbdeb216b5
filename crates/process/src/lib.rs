//! Programs of the host and the processes started from them: found in one way, started so that they die with their
//! parent, and ended, with what they were making, when a signal comes.

pub mod interrupt;
pub mod program;
