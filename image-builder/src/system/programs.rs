//! The programs and guest images that a system is made of.

use std::collections::BTreeSet;
use std::ops::Range;
use std::path::{Path, PathBuf};

use protocol::bundle;
use toml::Spanned;

use super::problem::{Problem, Source};

/// What a program is for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Program of a server.
    Server,
    /// Image of a guest.
    Guest,
}

/// Where a program comes from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A binary of this workspace, built when the image is.
    Workspace(String),
    /// An ELF file that somebody built already.
    File(PathBuf),
}

/// A file of the bundle.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its name in the bundle.
    pub file: String,
    /// Where it comes from.
    pub origin: Origin,
    /// What it is for.
    pub role: Role,
    /// Where the system file names it.
    pub at: Range<usize>,
}

/// Collects the programs that a system file names.
#[derive(Debug)]
pub struct Programs<'a> {
    /// Binaries of the workspace.
    known: &'a BTreeSet<String>,
    /// Folder of the system file.
    folder: &'a Path,
    programs: Vec<Program>,
}

impl<'a> Programs<'a> {
    /// None yet.
    pub fn new(known: &'a BTreeSet<String>, folder: &'a Path) -> Programs<'a> {
        Programs { known, folder, programs: Vec::new() }
    }

    /// Adds what the file calls `name`; the answer is its name in the bundle.
    pub fn add(&mut self, name: &Spanned<String>, role: Role, source: &Source) -> Result<String, Box<Problem>> {
        let text = name.get_ref();
        let origin = if text.contains('/') {
            let path = self.folder.join(text);
            if !path.is_file() {
                let message = format!("there is no file {}", path.display());
                return Err(Box::new(source.problem(name.span(), message)));
            }
            Origin::File(path)
        } else if self.known.contains(text) {
            Origin::Workspace(text.clone())
        } else {
            let kind = if role == Role::Server { "program" } else { "guest image" };
            let problem = source.problem(name.span(), format!("there is no {kind} called `{text}`"));
            let known: Vec<_> = self.known.iter().map(String::as_str).filter(|name| *name != bundle::INIT).collect();
            return Err(Box::new(problem.help(format!(
                "name a program of servers/ or guests/ ({}), or the path of an ELF file, with a slash in it",
                known.join(", ")
            ))));
        };
        let file = Path::new(text).file_name().map_or_else(|| text.clone(), |name| name.to_string_lossy().into_owned());
        if [bundle::INIT, bundle::MANIFEST, bundle::TRAILER].contains(&file.as_str()) {
            return Err(Box::new(source.problem(name.span(), format!("the name `{file}` is reserved in the bundle"))));
        }
        if let Some(other) = self.programs.iter().find(|program| program.file == file) {
            if other.origin != origin {
                let message = format!("two different programs would be called `{file}` in the bundle");
                return Err(Box::new(source.problem(name.span(), message).first(other.at.clone())));
            }
            if other.role != role {
                let message = format!("`{file}` is used as the program of a server and as a guest image");
                return Err(Box::new(source.problem(name.span(), message).first(other.at.clone())));
            }
        } else {
            self.programs.push(Program { file: file.clone(), origin, role, at: name.span() });
        }
        Ok(file)
    }

    /// All of them, in the order in which they were named.
    pub fn finish(self) -> Vec<Program> {
        self.programs
    }
}
