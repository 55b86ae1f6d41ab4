//! Which compiler builds the programs of the machine. A pure function of what was found.
//!
//! The kernel is built for `x86_64-unknown-none`. Servers and guests are built for a target of the
//! project's own, which has no compiled library anywhere, so its library is always built from
//! source. Two ways lead there:
//!
//! * **rustup**: its compiler with the target and the component `rust-src`.
//! * **the system's packages**: a compiler and its library's source side by side with rustup, for
//!   machines where rustup can download nothing.

use clap::ValueEnum;

use super::findings::{Compiler, Findings, OLDEST, Packages};

/// What the user asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, ValueEnum)]
pub enum Preference {
    /// What is there; else what can be had, rustup first.
    #[default]
    Auto,
    /// The compiler of rustup.
    Rustup,
    /// The compiler of the system's packages.
    System,
}

/// A way to build.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// The compiler of rustup.
    Rustup,
    /// The compiler of the system's packages.
    System,
}

/// Something to install.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Step {
    /// `rustup target add`
    RustupTarget,
    /// `rustup component add rust-src`
    RustupSource,
    /// A compiler and its library's source from the system's packages.
    SystemCompiler,
    /// A linker from the system's packages.
    SystemLinker,
}

/// What to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Decision {
    /// All is there.
    Use(Way, String),
    /// These steps are missing for a way.
    Install(Vec<Step>, String),
    /// There is no way on this machine.
    Impossible(String),
}

/// The decision, and why.
pub fn choose(findings: &Findings, preference: Preference) -> Decision {
    let rustup = (preference != Preference::System).then(|| rustup(findings));
    let system = (preference != Preference::Rustup).then(|| system(findings));
    let candidates: Vec<&Decision> = [&rustup, &system].into_iter().flatten().collect();
    let is_use = |decision: &&&Decision| matches!(decision, Decision::Use(..));
    let is_install = |decision: &&&Decision| matches!(decision, Decision::Install(..));
    let found = candidates.iter().find(is_use).or(candidates.iter().find(is_install));
    match found {
        Some(Decision::Use(Way::System, why)) => match &rustup {
            Some(Decision::Install(_, lacking) | Decision::Impossible(lacking)) => {
                Decision::Use(Way::System, format!("{why}; {lacking}"))
            }
            _ => Decision::Use(Way::System, why.clone()),
        },
        Some(decision) => (**decision).clone(),
        None => {
            let reason = |decision: &&Decision| match decision {
                Decision::Impossible(why) => why.clone(),
                Decision::Use(_, why) | Decision::Install(_, why) => why.clone(),
            };
            Decision::Impossible(candidates.iter().map(reason).collect::<Vec<_>>().join("; "))
        }
    }
}

fn rustup(findings: &Findings) -> Decision {
    let Some(compiler) = &findings.rustup else { return Decision::Impossible("there is no rustup".into()) };
    if let Some(why) = too_old(compiler, "rustup's compiler") {
        return Decision::Impossible(format!("{why}: type `rustup update`"));
    }
    let mut steps = Vec::new();
    let mut lacking = Vec::new();
    if !compiler.target {
        steps.push(Step::RustupTarget);
        lacking.push("the target x86_64-unknown-none");
    }
    if !compiler.source {
        steps.push(Step::RustupSource);
        lacking.push("the component rust-src");
    }
    if steps.is_empty() {
        return Decision::Use(Way::Rustup, "rustup has the target x86_64-unknown-none and rust-src".into());
    }
    let lacking = format!("rustup lacks {}", lacking.join(" and "));
    match &findings.rustup_refused {
        Some(reason) => Decision::Impossible(format!("{lacking} and cannot download: {reason}")),
        None => Decision::Install(steps, lacking),
    }
}

fn system(findings: &Findings) -> Decision {
    let mut steps = Vec::new();
    let mut lacking = Vec::new();
    let compiler = findings.system.as_ref();
    let why = match compiler {
        None => Some("there is no /usr/bin/rustc".to_string()),
        Some(compiler) => too_old(compiler, "/usr/bin/rustc")
            .or((!compiler.source).then(|| "the library's source for /usr/bin/rustc is missing".into())),
    };
    if let Some(why) = why {
        steps.push(Step::SystemCompiler);
        lacking.push(why);
    }
    if findings.linker().is_none() {
        steps.push(Step::SystemLinker);
        lacking.push("there is no rust-lld and no ld.lld".into());
    }
    if let Some(compiler) = compiler.filter(|_| steps.is_empty()) {
        let why = format!("/usr/bin/rustc ({}) and its library's source are installed", compiler.release);
        return Decision::Use(Way::System, why);
    }
    let lacking = lacking.join(" and ");
    match (&findings.packages_refused, findings.packages) {
        (Some(reason), _) => Decision::Impossible(format!("{lacking}; installing it failed: {reason}")),
        (None, Packages::None) => Decision::Impossible(format!("{lacking}, and there is no apt-get to install it")),
        (None, _) => Decision::Install(steps, lacking),
    }
}

fn too_old(compiler: &Compiler, name: &str) -> Option<String> {
    let old = compiler.release < OLDEST;
    old.then(|| format!("{name} is release {}, but {OLDEST} is needed", compiler.release))
}

#[cfg(test)]
mod tests {
    use super::super::findings::Release;
    use super::*;

    fn compiler(minor: u32, target: bool, source: bool) -> Option<Compiler> {
        let release = Release { major: 1, minor };
        Some(Compiler {
            rustc: "rustc".into(),
            version: "x".into(),
            release,
            target,
            source,
            linker: Some("lld".into()),
        })
    }

    fn findings(rustup: Option<Compiler>, system: Option<Compiler>) -> Findings {
        Findings {
            rustup,
            rustup_refused: None,
            system,
            system_linker: None,
            packages: Packages::Root,
            packages_refused: None,
        }
    }

    fn auto(findings: &Findings) -> Decision {
        choose(findings, Preference::Auto)
    }

    #[test]
    fn a_complete_way_is_taken_before_anything_is_installed() {
        let both = findings(compiler(95, true, true), compiler(96, false, true));
        assert!(matches!(auto(&both), Decision::Use(Way::Rustup, _)));
        assert!(matches!(choose(&both, Preference::System), Decision::Use(Way::System, _)));
        let incomplete = findings(compiler(95, true, false), compiler(96, false, true));
        let Decision::Use(Way::System, why) = auto(&incomplete) else { panic!("the system's compiler is complete") };
        assert!(why.contains("rustup lacks the component rust-src"), "{why}");
    }

    #[test]
    fn rustup_is_tried_first_then_packages() {
        let mut fresh = findings(compiler(95, false, false), None);
        assert_eq!(
            auto(&fresh),
            Decision::Install(
                vec![Step::RustupTarget, Step::RustupSource],
                "rustup lacks the target x86_64-unknown-none and the component rust-src".into()
            )
        );
        fresh.rustup_refused = Some("no network".into());
        assert!(matches!(auto(&fresh), Decision::Install(steps, _) if steps == [Step::SystemCompiler]));
        fresh.packages_refused = Some("no such package".into());
        let Decision::Impossible(why) = auto(&fresh) else { panic!("nothing is left to try") };
        assert!(why.contains("no network") && why.contains("no such package"), "{why}");
    }

    #[test]
    fn an_old_or_incomplete_system_compiler_is_not_used() {
        let old = findings(None, compiler(85, false, true));
        assert!(
            matches!(auto(&old), Decision::Install(steps, why) if steps.contains(&Step::SystemCompiler) && why.contains("1.85"))
        );
        let mut no_linker = findings(None, compiler(96, false, true));
        // The system's compiler has its linker elsewhere than rustup's.
        assert!(matches!(auto(&no_linker), Decision::Install(steps, _) if steps == [Step::SystemLinker]));
        no_linker.system_linker = Some("/usr/bin/ld.lld".into());
        assert!(matches!(auto(&no_linker), Decision::Use(Way::System, _)));
    }

    #[test]
    fn without_apt_there_is_no_second_way() {
        let mut nothing = findings(None, None);
        nothing.packages = Packages::None;
        assert!(matches!(auto(&nothing), Decision::Impossible(_)));
        let rustup_only = findings(None, compiler(96, false, true));
        assert!(matches!(choose(&rustup_only, Preference::Rustup), Decision::Impossible(_)));
    }
}
