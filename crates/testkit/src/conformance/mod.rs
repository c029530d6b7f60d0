//! Conformance suites: what every driver of a port has to do, whoever wrote it.
//!
//! Each port has a module with a trait `Bench` (what the suite needs to know and to do to the outside of the
//! driver under test: watch its writers, get in their way, change the source) and a function `suite`, which
//! takes a factory of benches and runs every case on a fresh one. The cases are public too, so that a driver
//! can run one by itself. A bench says `false` or `None` where something cannot be done with its driver.
//!
//! ```no_run
//! # use testkit::conformance::hold::{suite, Bench};
//! fn pass(my_bench: fn() -> Box<dyn Bench>) {
//!     suite(my_bench);
//! }
//! ```
//!
//! Crash story: a failed case panics; its bench removes what it made when it is dropped.

use std::{panic::AssertUnwindSafe, time::Duration};

use model::{
    port::{Clock, Failure, FailureKind},
    time::Deadline,
};

pub mod contents;
pub mod hold;
pub mod journal;
pub mod log_shelf;
pub mod pinner;
pub mod shelf;
pub mod site;
pub mod store;

/// Far more than any case takes that is not about deadlines.
pub(crate) const AMPLE: Duration = Duration::from_secs(20);
/// How late a driver may be in giving up.
pub(crate) const LATE: Duration = Duration::from_millis(1_000);

/// The deadline `duration` from now.
pub(crate) fn within(clock: &dyn Clock, duration: Duration) -> Deadline {
    Deadline(clock.moment().after(duration))
}

/// Runs one case and says which one failed.
pub(crate) fn case(name: &str, run: impl FnOnce()) {
    if let Err(panic) = std::panic::catch_unwind(AssertUnwindSafe(run)) {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without words");
        panic!("conformance case {name}: {text}");
    }
}

/// Runs the named cases, each on a fresh bench.
macro_rules! cases {
    ($make:ident: $($name:ident),+ $(,)?) => {
        $(crate::conformance::case(stringify!($name), || $name(&*$make()));)+
    };
}
pub(crate) use cases;

/// Asserts that a failure is one after which the cut may be tried again.
pub(crate) fn assert_transient(failure: &Failure) {
    assert!(
        matches!(failure.kind, FailureKind::Busy | FailureKind::TimedOut),
        "should be Busy or TimedOut, but is {:?}: {}",
        failure.kind,
        failure.in_full()
    );
}
