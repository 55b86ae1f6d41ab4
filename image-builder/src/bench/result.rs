//! Results of benchmarks: read from the serial line, shown as a table, written as JSON.

use std::collections::BTreeMap;

use serde::Serialize;

/// What a measuring program puts before each result on the serial line.
pub const MARK: &str = "BENCH";

/// Which way is better.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Better {
    /// Less is better.
    Lower,
    /// More is better.
    Higher,
}

/// One number.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Measurement {
    /// What was measured.
    pub name: String,
    /// How much.
    pub value: f64,
    /// Of what.
    pub unit: String,
    /// Which way is better.
    pub better: Better,
    /// Under which conditions.
    pub params: BTreeMap<String, String>,
}

/// All results of a benchmark, as they are written to a file.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Results {
    /// Name of the benchmark.
    pub bench: String,
    /// On what it ran.
    pub machine: String,
    /// Of what it is a measurement.
    pub commit: String,
    /// The numbers.
    pub results: Vec<Measurement>,
}

/// The result in a line `BENCH name value unit better key=value...`, wherever it begins in the line: `None` if it
/// has none, an error if it is wrong.
pub fn parse(line: &str) -> Option<Result<Measurement, String>> {
    let mut words = line.split_whitespace().skip_while(|word| *word != MARK).skip(1).peekable();
    words.peek()?;
    Some(measurement(&mut words).ok_or_else(|| format!("not a result: {line}")))
}

fn measurement<'a>(words: &mut impl Iterator<Item = &'a str>) -> Option<Measurement> {
    let name = words.next()?.to_string();
    let value = words.next()?.parse().ok().filter(|value: &f64| value.is_finite())?;
    let unit = words.next()?.to_string();
    let better = match words.next()? {
        "lower" => Better::Lower,
        "higher" => Better::Higher,
        _ => return None,
    };
    let pair = |word: &str| word.split_once('=').map(|(key, value)| (key.to_string(), value.to_string()));
    let params = words.map(pair).collect::<Option<_>>()?;
    Some(Measurement { name, value, unit, better, params })
}

/// The results as a table.
pub fn table(results: &[Measurement]) -> String {
    let mut rows = vec![["what".to_string(), "value".into(), "unit".into(), "better".into(), "conditions".into()]];
    for result in results {
        let params: Vec<_> = result.params.iter().map(|(key, value)| format!("{key}={value}")).collect();
        let better = if result.better == Better::Lower { "lower" } else { "higher" };
        rows.push([result.name.clone(), number(result.value), result.unit.clone(), better.into(), params.join(" ")]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let [what, value, unit, better] = [0, 1, 2, 3].map(width);
    let line = |row: &[String; 5]| {
        let text = format!("{:what$}  {:>value$}  {:unit$}  {:better$}  {}", row[0], row[1], row[2], row[3], row[4]);
        text.trim_end().to_string() + "\n"
    };
    rows.iter().map(line).collect()
}

fn number(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value:.0}") } else { format!("{value:.2}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_with_results_are_read() {
        let line = "bench: BENCH null-call 58 instructions lower rounds=1000 cpus=1";
        let result = parse(line).expect("a result").expect("a good one");
        assert_eq!((result.name.as_str(), result.value, result.unit.as_str()), ("null-call", 58.0, "instructions"));
        assert_eq!(result.better, Better::Lower);
        assert_eq!(result.params["rounds"], "1000");
        assert_eq!(parse("bench: started"), None);
        assert_eq!(parse("BENCH"), None);
    }

    #[test]
    fn wrong_results_are_not_overlooked() {
        for line in ["BENCH x", "BENCH x y z lower", "BENCH x 1 u best", "BENCH x 1 u lower odd", "BENCH x NaN u lower"]
        {
            parse(line).expect("meant as a result").expect_err(line);
        }
    }

    #[test]
    fn tables_and_files() {
        let result = parse("BENCH call-reply 412.5 instructions lower bytes=64").expect("one").expect("good");
        let table = table(std::slice::from_ref(&result));
        assert_eq!(
            table,
            "what         value  unit          better  conditions\n\
             call-reply  412.50  instructions  lower   bytes=64\n"
        );
        let results = Results { bench: "ipc".into(), machine: "m".into(), commit: "c".into(), results: vec![result] };
        let json = serde_json::to_string(&results).expect("it is plain data");
        assert_eq!(
            json,
            r#"{"bench":"ipc","machine":"m","commit":"c","results":[{"name":"call-reply","value":412.5,"unit":"instructions","better":"lower","params":{"bytes":"64"}}]}"#
        );
    }
}
