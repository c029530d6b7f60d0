//! Which frozen copies are cloned.
//!
//! Crash story: tests of pure functions, no effects.

use super::{Case, Found, Request, case, entry, listing, to};
use crate::{entry::Kind, port::FailureKind, reference::ReferenceFile, size::Bytes};

fn copy(path: &str, size: u64) -> ReferenceFile {
    ReferenceFile {
        path: path.into(),
        copy: "/backup/copy".into(),
        size: Bytes(size),
        inode: 1,
        ctime: 0,
        mtime: 0,
        blob: 32768,
        volume: None,
        content: String::new(),
        map: None,
    }
}

#[test]
fn only_copies_of_the_file_on_the_filesystem_it_is_written_to_are_cloned() {
    let planned = |request: Request, copy: ReferenceFile, device: u64| {
        let mut case = Case { request, ..to("/srv/restored", Found::Absent) };
        case.site.copies = vec![(copy, device)];
        let plan = case.plan().unwrap();
        (plan.copies.len(), plan.trusts_copies, plan.describe().join("\n"))
    };
    let request = || to("/srv/restored", Found::Absent).request;
    let file = "/srv/hydro/var/file";
    let (count, trusts, said) = planned(request(), copy(file, 1000), 1);
    assert_eq!((count, trusts), (1, false));
    assert!(said.contains("cloned") && said.contains("compared") && said.contains(file), "{said}");
    for (copy, device) in [
        (copy(file, 1000), 2),
        (copy(file, 1001), 1),
        (copy("/srv/hydro/var", 1000), 1),
        (copy("/gone", 1000), 1),
    ] {
        assert_eq!(planned(request(), copy.clone(), device).0, 0, "{copy:?} on {device}");
    }
    let trusting = |read_back| Request { trust_copies: true, read_back, ..request() };
    let (_, trusts, said) = planned(trusting(false), copy(file, 1000), 1);
    assert!(trusts && said.contains("not read"), "{said}");
    assert!(!planned(trusting(true), copy(file, 1000), 1).1);
    let mut in_place = case();
    in_place.request.trust_copies = true;
    assert!(!in_place.plan().unwrap().trusts_copies, "in place nothing is trusted");
}

#[test]
fn what_is_cloned_needs_no_space() {
    const LARGE: u64 = 64 << 20;
    let mut case = to("/srv/restored", Found::Absent);
    let mut large = entry("/srv/hydro/var/file", Kind::File);
    large.meta.size = Bytes(LARGE);
    case.listing = listing(vec![entry("/srv", Kind::Dir), large]);
    case.site.places[0].free = Bytes(LARGE);
    case.refused(FailureKind::NoSpace, "are free");
    case.site.copies = vec![(copy("/srv/hydro/var/file", LARGE), 2)];
    case.refused(FailureKind::NoSpace, "are free");
    case.site.copies[0].1 = 1;
    assert_eq!(case.plan().unwrap().copies.len(), 1);
}
