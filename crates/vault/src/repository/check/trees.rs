//! Every directory of every backup against the index.
//!
//! Crash story: reads only. Directories that several backups share are read once.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    fmt,
    path::{Path, PathBuf},
    rc::Rc,
    vec,
};

use rustic_core::{Id, repofile::Node};

use super::{
    super::{node, open::Repository},
    Root,
    packs::{Catalog, directory},
    shown,
};

/// What is to blame for something that is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    /// The pack of this number.
    Pack(usize),
    /// No index names it.
    NoIndex,
    /// A directory without content, or a file without a list of parts.
    Shape,
}

/// How many lost files of one cause are named.
const NAMED: usize = 3;
/// How many lost files are remembered for each directory.
const REMEMBERED: usize = 1000;

/// What is lost, by cause.
#[derive(Default)]
pub(super) struct Damage(HashMap<Cause, Cost>);

/// What one cause costs.
#[derive(Default)]
pub(super) struct Cost {
    backups: BTreeSet<String>,
    paths: BTreeSet<PathBuf>,
}

impl Damage {
    pub(super) fn of(&self, cause: Cause) -> Option<&Cost> {
        self.0.get(&cause)
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<String> = self.paths.iter().take(NAMED).map(|path| shown(path)).collect();
        write!(f, "needed for {}", named.join(", "))?;
        if self.paths.len() > NAMED {
            write!(f, " and {} more", self.paths.len() - NAMED)?;
        }
        let backups: Vec<&str> = self.backups.iter().take(NAMED).map(String::as_str).collect();
        write!(f, " in backup {}", backups.join(", "))?;
        if self.backups.len() > NAMED {
            write!(f, " and {} more", self.backups.len() - NAMED)?;
        }
        Ok(())
    }
}

/// A lost path, below the directory that remembers it.
type Hits = Rc<Vec<(PathBuf, Cause)>>;

/// A directory that is being walked.
struct Frame {
    tree: Id,
    path: PathBuf,
    nodes: vec::IntoIter<Node>,
    hits: Vec<(PathBuf, Cause)>,
}

struct Walk<'a> {
    repository: &'a Repository,
    catalog: &'a Catalog,
    whole: HashSet<Id>,
    damaged: HashMap<Id, Hits>,
}

/// Walks all backups.
pub(super) fn walk(repository: &Repository, catalog: &Catalog, roots: &[Root]) -> Damage {
    let mut walk = Walk { repository, catalog, whole: HashSet::new(), damaged: HashMap::new() };
    let mut damage = Damage::default();
    for root in roots {
        for (path, cause) in walk.tree(*root.tree).iter() {
            let cost = damage.0.entry(*cause).or_default();
            cost.backups.insert(root.name.clone());
            cost.paths.insert(path.clone());
        }
    }
    damage
}

impl Walk<'_> {
    /// What is lost in a tree. With a stack of our own: directories may be nested deeper than ours.
    fn tree(&mut self, root: Id) -> Hits {
        let mut stack = Vec::new();
        self.enter(&mut stack, PathBuf::new(), root);
        while let Some(top) = stack.last_mut() {
            match top.nodes.next() {
                Some(node) => self.visit(&mut stack, &node),
                None => {
                    if let Some(done) = stack.pop() {
                        let (tree, path) = (done.tree, done.path.clone());
                        self.remember(done);
                        self.pass_up(&mut stack, &path, tree);
                    }
                }
            }
        }
        self.damaged.get(&root).cloned().unwrap_or_default()
    }

    /// Begins a directory that is not known yet; one that cannot be read is known to be lost at once.
    fn enter(&mut self, stack: &mut Vec<Frame>, path: PathBuf, tree: Id) {
        if self.whole.contains(&tree) || self.damaged.contains_key(&tree) {
            return self.pass_up(stack, &path, tree);
        }
        match directory(self.repository, self.catalog, &tree) {
            Ok(read) => stack.push(Frame { tree, path, nodes: read.nodes.into_iter(), hits: Vec::new() }),
            Err(to_blame) => {
                let lost = vec![(PathBuf::new(), to_blame.map_or(Cause::NoIndex, Cause::Pack))];
                self.damaged.insert(tree, Rc::new(lost));
                self.pass_up(stack, &path, tree);
            }
        }
    }

    fn visit(&mut self, stack: &mut Vec<Frame>, node: &Node) {
        let name = node::child(Path::new(""), node);
        if node.is_dir() {
            match node.subtree {
                Some(tree) => self.enter(stack, name, *tree),
                None => hit(stack, name, Cause::Shape),
            }
        } else if node.is_file() {
            match &node.content {
                None => hit(stack, name, Cause::Shape),
                Some(parts) => {
                    if let Some(to_blame) = parts.iter().find_map(|part| self.catalog.part(part).err()) {
                        hit(stack, name, to_blame.map_or(Cause::NoIndex, Cause::Pack));
                    }
                }
            }
        }
    }

    fn remember(&mut self, done: Frame) {
        if done.hits.is_empty() {
            self.whole.insert(done.tree);
        } else {
            self.damaged.insert(done.tree, Rc::new(done.hits));
        }
    }

    /// Tells the directory above what is lost in a finished one.
    fn pass_up(&self, stack: &mut [Frame], path: &Path, tree: Id) {
        let (Some(above), Some(hits)) = (stack.last_mut(), self.damaged.get(&tree)) else { return };
        let room = REMEMBERED.saturating_sub(above.hits.len());
        above.hits.extend(hits.iter().take(room).map(|(below, cause)| (path.join(below), *cause)));
    }
}

fn hit(stack: &mut [Frame], name: PathBuf, cause: Cause) {
    if let Some(top) = stack.last_mut()
        && top.hits.len() < REMEMBERED
    {
        top.hits.push((name, cause));
    }
}
