//! Who calls whom: only from client to server to driver, never in a circle.
//!
//! With that, no deadlock is possible: a server that waits for an answer waits for one that is
//! nearer to the hardware, and the last one waits for nobody.

use std::ops::Range;

use super::file::BandName;
use super::problem::{Problem, Source};

/// A server as far as calls are concerned.
#[derive(Debug)]
pub struct Node<'a> {
    /// Name.
    pub name: &'a str,
    /// Band.
    pub band: BandName,
    /// Servers it calls: index among the nodes, and where the file says so.
    pub calls: Vec<(usize, Range<usize>)>,
}

/// An order in which every server comes after those it calls; otherwise as in the file.
pub fn order(nodes: &[Node<'_>], source: &Source) -> Result<Vec<usize>, Vec<Problem>> {
    let mut problems = downward(nodes, source);
    let mut walk = Walk { nodes, source, state: vec![State::New; nodes.len()], order: Vec::new(), path: Vec::new() };
    for index in 0..nodes.len() {
        if walk.state[index] == State::Done {
            continue;
        }
        if let Err(problem) = walk.visit(index) {
            problems.push(problem);
            break;
        }
    }
    if problems.is_empty() { Ok(walk.order) } else { Err(problems) }
}

/// Calls from a driver to a server.
fn downward(nodes: &[Node<'_>], source: &Source) -> Vec<Problem> {
    let mut problems = Vec::new();
    for node in nodes.iter().filter(|node| node.band == BandName::Driver) {
        for (callee, at) in &node.calls {
            let callee = &nodes[*callee];
            if callee.band == BandName::Server {
                let message = format!("driver `{}` calls server `{}`, which is downward", node.name, callee.name);
                problems.push(source.problem(at.clone(), message).label("downward call").help(
                    "calls go from client to server to driver; the other way there are virtual interrupts. \
                     Let the server call the driver, or change one's band",
                ));
            }
        }
    }
    problems
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    OnPath,
    Done,
}

struct Walk<'a> {
    nodes: &'a [Node<'a>],
    source: &'a Source,
    state: Vec<State>,
    order: Vec<usize>,
    path: Vec<usize>,
}

impl Walk<'_> {
    fn visit(&mut self, index: usize) -> Result<(), Problem> {
        self.state[index] = State::OnPath;
        self.path.push(index);
        for (callee, at) in &self.nodes[index].calls {
            match self.state[*callee] {
                State::Done => {}
                State::New => self.visit(*callee)?,
                State::OnPath => return Err(self.circle(*callee, at.clone())),
            }
        }
        self.path.pop();
        self.state[index] = State::Done;
        self.order.push(index);
        Ok(())
    }

    fn circle(&self, start: usize, at: Range<usize>) -> Problem {
        let on_circle = self.path.iter().skip_while(|index| **index != start).chain([&start]);
        let names: Vec<_> = on_circle.map(|index| self.nodes[*index].name).collect();
        let message = format!("servers call each other in a circle: {}", names.join(" → "));
        let problem = self.source.problem(at, message).label("this call closes the circle");
        problem.help("each would wait for the other; replace one of the calls by a virtual interrupt")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &'static str, band: BandName, calls: &[usize]) -> Node<'static> {
        Node { name, band, calls: calls.iter().map(|index| (*index, 0..1)).collect() }
    }

    #[test]
    fn callees_come_first_and_file_order_is_kept() {
        use BandName::*;
        let nodes = [
            node("loader", Server, &[2, 3]),
            node("console", Driver, &[]),
            node("swap", Server, &[]),
            node("vswitch", Server, &[2]),
        ];
        let order = order(&nodes, &Source::new("test", "x")).expect("no circle");
        assert_eq!(order, [2, 3, 0, 1]);
    }

    #[test]
    fn circles_and_downward_calls_are_found() {
        use BandName::*;
        let source = Source::new("test", "x");
        let nodes = [node("a", Server, &[1]), node("b", Server, &[2]), node("c", Server, &[1])];
        let problems = order(&nodes, &source).expect_err("a circle");
        assert_eq!(problems[0].to_string(), "servers call each other in a circle: b → c → b");
        let nodes = [node("a", Server, &[0])];
        assert!(order(&nodes, &source).is_err(), "a server that calls itself");
        let nodes = [node("disk", Driver, &[1]), node("log", Server, &[])];
        let problems = order(&nodes, &source).expect_err("downward");
        assert!(problems[0].to_string().contains("downward"));
        let nodes = [node("disk", Driver, &[1]), node("platform", Driver, &[])];
        assert_eq!(order(&nodes, &source).expect("a driver may call a driver"), [1, 0]);
    }
}
