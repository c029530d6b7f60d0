//! Two-pass pins on whatever filesystem the temporary directory is on, as an ordinary user.

mod fs_support;

use testkit::conformance::pinner::suite;

use fs_support::{How, TreeBench};

#[test]
fn the_plain_form_is_a_pinner() {
    suite(|| Box::new(TreeBench::new(How::Plain, tempfile::tempdir().unwrap())));
}

/// Where nothing can be cloned, the fast form does what the plain one does.
#[test]
fn the_fast_form_is_a_pinner_anywhere() {
    suite(|| Box::new(TreeBench::new(How::Fast, tempfile::tempdir().unwrap())));
}
