//! What is wrong with a system file, and on which line.

use std::ops::Range;
use std::sync::Arc;

use miette::{Diagnostic, NamedSource, SourceSpan};

/// The text of a system file and its name.
#[derive(Clone, Debug)]
pub struct Source {
    named: Arc<NamedSource<Arc<str>>>,
}

impl Source {
    /// A file with this name and contents.
    pub fn new(name: impl AsRef<str>, text: impl Into<Arc<str>>) -> Source {
        Source { named: Arc::new(NamedSource::new(name, text.into())) }
    }

    /// A problem at a place of the file.
    pub fn problem(&self, at: Range<usize>, message: impl Into<String>) -> Problem {
        let at = SourceSpan::from(at);
        Problem { message: message.into(), text: self.named.clone(), at, label: None, other: None, help: None }
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, thiserror::Error, Diagnostic)]
#[error("{message}")]
pub struct Problem {
    message: String,
    #[source_code]
    text: Arc<NamedSource<Arc<str>>>,
    #[label(primary, "{}", label.as_deref().unwrap_or("here"))]
    at: SourceSpan,
    label: Option<String>,
    #[label("first here")]
    other: Option<SourceSpan>,
    #[help]
    help: Option<String>,
}

impl Problem {
    /// With words at the place itself.
    pub fn label(mut self, label: impl Into<String>) -> Problem {
        self.label = Some(label.into());
        self
    }
    /// With the place where the same thing was said first.
    pub fn first(mut self, at: Range<usize>) -> Problem {
        self.other = Some(SourceSpan::from(at));
        self
    }
    /// With what to do about it.
    pub fn help(mut self, help: impl Into<String>) -> Problem {
        self.help = Some(help.into());
        self
    }
}

/// Everything that is wrong with a file.
#[derive(Debug, thiserror::Error, Diagnostic)]
#[error("{file} describes no possible system")]
pub struct Problems {
    /// The file's name.
    pub file: String,
    /// At least one.
    #[related]
    pub problems: Vec<Problem>,
}
