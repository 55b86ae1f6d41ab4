//! The project's own packages and where things lie.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use cargo_metadata::{Metadata, MetadataCommand, Package, TargetKind};
use miette::{IntoDiagnostic, Result, WrapErr};

/// Package and program of the microkernel.
pub const KERNEL: &str = "microkernel";

/// The workspace.
#[derive(Debug)]
pub struct Workspace {
    /// Its top folder.
    pub root: PathBuf,
    /// Cargo's folder for what it builds.
    pub target: PathBuf,
    metadata: Metadata,
}

impl Workspace {
    /// The workspace that this program belongs to.
    pub fn find() -> Result<Workspace> {
        let own =
            std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
        let metadata = MetadataCommand::new()
            .current_dir(&own)
            .no_deps()
            .exec()
            .into_diagnostic()
            .wrap_err("cargo cannot describe the workspace")?;
        let root = metadata.workspace_root.clone().into_std_path_buf();
        let target = metadata.target_directory.clone().into_std_path_buf();
        Ok(Workspace { root, target, metadata })
    }

    /// Where the programs of the machine are built.
    pub fn metal(&self) -> PathBuf {
        self.target.join("metal")
    }

    /// Where the files of a system go.
    pub fn output(&self, system: &str) -> PathBuf {
        self.target.join("denali").join(system)
    }

    /// The default system file.
    pub fn default_system(&self) -> PathBuf {
        self.root.join("system.toml")
    }

    /// A system file used by tests and benchmarks.
    pub fn system(&self, name: &str) -> PathBuf {
        self.root.join("image-builder/systems").join(name).with_extension("toml")
    }

    fn packages_in(&self, folders: &[&str]) -> impl Iterator<Item = &Package> {
        let folders: Vec<PathBuf> = folders.iter().map(|folder| self.root.join(folder)).collect();
        let inside = move |package: &&Package| folders.iter().any(|folder| package.manifest_path.starts_with(folder));
        self.metadata.workspace_packages().into_iter().filter(inside)
    }

    /// Servers and guests: program → package.
    pub fn programs(&self) -> BTreeMap<String, String> {
        let mut programs = BTreeMap::new();
        for package in self.packages_in(&["servers", "guests"]) {
            for target in package.targets.iter().filter(|target| target.is_kind(TargetKind::Bin)) {
                programs.insert(target.name.clone(), spec(package));
            }
        }
        programs
    }

    /// Names of the programs.
    pub fn program_names(&self) -> BTreeSet<String> {
        self.programs().into_keys().collect()
    }

    /// Packages whose library can be tested on the host.
    pub fn libraries(&self) -> Vec<String> {
        let packages = self.metadata.workspace_packages().into_iter();
        let has_library = |package: &&Package| package.targets.iter().any(|target| target.is_kind(TargetKind::Lib));
        packages.filter(has_library).map(spec).collect()
    }

    /// Packages with integration tests, and the tests' names.
    pub fn integration_tests(&self) -> Vec<(String, String)> {
        let mut tests = Vec::new();
        for package in self.metadata.workspace_packages() {
            for target in package.targets.iter().filter(|target| target.is_kind(TargetKind::Test)) {
                tests.push((spec(package), target.name.clone()));
            }
        }
        tests
    }

    /// The packages that make programs of the machine: servers and guests.
    pub fn metal_packages(&self) -> BTreeSet<String> {
        self.programs().into_values().collect()
    }

    /// The package of the microkernel, if it has its program.
    pub fn kernel(&self) -> Option<String> {
        let mut packages = self.metadata.workspace_packages().into_iter();
        let kernel = packages.find(|package| package.name.as_str() == KERNEL)?;
        kernel.targets.iter().any(|target| target.is_kind(TargetKind::Bin)).then(|| spec(kernel))
    }

    /// A path as a user would write it: below the top folder without that folder.
    pub fn short<'a>(&self, path: &'a Path) -> &'a Path {
        path.strip_prefix(&self.root).unwrap_or(path)
    }
}

/// How cargo's command line names a package without doubt: a crate that we use may have the same name.
fn spec(package: &Package) -> String {
    package.id.repr.clone()
}
