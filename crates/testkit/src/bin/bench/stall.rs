//! The stall that clients see of a cut, against size, filesystem and age of the files.

use testkit::server::Volume;

use super::{
    figures::{cell, column, median, worst},
    options::Options,
    page,
    scene::{Cut, Scene},
};

/// Bytes of an image: twice the tables, and room for logs and what ageing and clones write.
fn image(gigabytes: f64) -> u64 {
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "gigabytes of tests")]
    let tables = (gigabytes * 2.2e9) as u64;
    tables + (5 << 30)
}

/// Measures every combination, and puts each on the page as soon as it is done.
pub fn run(options: &Options) {
    for filesystem in &options.filesystems {
        for &gigabytes in &options.sizes {
            for age in &options.ages {
                println!("== {filesystem}, {gigabytes} GB, {age}");
                let row = one(options, filesystem, gigabytes, age);
                println!("{}", row.join(" | "));
                page::update(options, &page::STALL, vec![row]);
            }
        }
    }
}

fn one(options: &Options, filesystem: &str, gigabytes: f64, age: &str) -> Vec<String> {
    let nights = if age == "aged" { options.nights } else { 0 };
    let volume = Volume::new(filesystem, image(gigabytes), &options.dir);
    let all = volume.directory("all");
    let scene = Scene::new(options, &all, volume.path().join("site"), gigabytes, nights);
    let extents = scene.extents();
    let (cuts, given_up) = scene.cuts(options.cuts, |_| {});
    let medians = [|cut: &Cut| cut.stall, |cut: &Cut| cut.without, |cut: &Cut| cut.with, Cut::more];
    let medians = medians.map(|of| cell(median(&column(&cuts, of))));
    let key = [filesystem.to_owned(), gigabytes.to_string(), age.to_owned()];
    let counts = [options.files.to_string(), extents.to_string(), page::count(cuts.len(), given_up)];
    let ends = [cell(worst(&column(&cuts, Cut::more))), page::measured()];
    key.into_iter().chain(counts).chain(medians).chain(ends).collect()
}

/// What the project promised of these figures, beside what they are.
pub fn bounds(table: &str, rows: &[Vec<String>]) -> Vec<String> {
    const MORE: usize = 9;
    if table != page::STALL.name {
        return vec![];
    }
    let more = |filesystem: &str, size: &str, age: &str| -> Option<f64> {
        let row = rows.iter().find(|row| row[0] == filesystem && row[1] == size && row[2] == age)?;
        row[MORE].parse().ok()
    };
    let mut told = vec![];
    for filesystem in ["xfs", "btrfs"] {
        for (age, allowed) in [("fresh", 60.0), ("aged", 250.0)] {
            if let Some(more) = more(filesystem, "2.4", age) {
                told.push(format!(
                    "{filesystem}, 2.4 GB, {age}: {more:.1} ms more; allowed: {allowed}{}",
                    mark(more, allowed)
                ));
            }
        }
        if let (Some(large), Some(small)) = (more(filesystem, "8", "fresh"), more(filesystem, "0.5", "fresh"))
        {
            let apart = large - small;
            told.push(format!(
                "{filesystem}, fresh: 8 GB cost {apart:.1} ms more than 0.5 GB; allowed: 20{}",
                mark(apart, 20.0)
            ));
        }
    }
    told
}

fn mark(value: f64, allowed: f64) -> &'static str {
    if value <= allowed { "" } else { " – **not held**" }
}
