//! Counters, gauges and histograms of one worker: plain cells, so counting costs an addition.
//!
//! Ask for a handle once and keep it. A scrape asks every worker for its `samples` and adds them up
//! (`Merged`), then renders Prometheus text or Envoy's `/stats` lines.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};
use std::fmt::Write;
use std::rc::Rc;

/// A value that only grows.
#[derive(Debug, Default)]
pub struct Counter(Cell<u64>);

impl Counter {
    /// One more.
    pub fn inc(&self) {
        self.add(1);
    }

    /// `amount` more.
    pub fn add(&self, amount: u64) {
        self.0.set(self.0.get().wrapping_add(amount));
    }

    /// The value on this worker.
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// A value that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(Cell<i64>);

impl Gauge {
    /// Adds (or takes away).
    pub fn add(&self, amount: i64) {
        self.0.set(self.0.get() + amount);
    }

    /// Replaces.
    pub fn set(&self, value: i64) {
        self.0.set(value);
    }

    /// The value on this worker.
    pub fn get(&self) -> i64 {
        self.0.get()
    }
}

/// Upper bounds in milliseconds (or bytes): those of Istio's and Envoy's histograms.
pub const BUCKETS: [f64; 19] = [
    0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10000.0, 30000.0, 60000.0, 300000.0,
    600000.0, 1800000.0, 3600000.0,
];

/// A distribution over `BUCKETS`.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Cell<u64>; BUCKETS.len() + 1],
    sum: Cell<f64>,
}

impl Histogram {
    /// Counts one value.
    pub fn observe(&self, value: f64) {
        let bucket = &self.buckets[BUCKETS.partition_point(|bound| *bound < value)];
        bucket.set(bucket.get() + 1);
        self.sum.set(self.sum.get() + value);
    }
}

/// Name and labels, in the given order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    pub name: &'static str,
    pub labels: Vec<(&'static str, String)>,
}

impl Key {
    fn new(name: &'static str, labels: &[(&'static str, &str)]) -> Self {
        Self { name, labels: labels.iter().map(|(label, value)| (*label, (*value).to_owned())).collect() }
    }
}

/// One value, sent from a worker to whoever scrapes.
#[derive(Clone, Debug, PartialEq)]
pub enum Sample {
    Counter(u64),
    Gauge(i64),
    Histogram { buckets: Vec<u64>, sum: f64 },
}

/// All metrics of a worker.
#[derive(Debug, Default)]
pub struct Stats {
    counters: RefCell<HashMap<Key, Rc<Counter>>>,
    gauges: RefCell<HashMap<Key, Rc<Gauge>>>,
    histograms: RefCell<HashMap<Key, Rc<Histogram>>>,
}

impl Stats {
    /// The counter of that name and labels.
    pub fn counter(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Rc<Counter> {
        Rc::clone(self.counters.borrow_mut().entry(Key::new(name, labels)).or_default())
    }

    /// The gauge of that name and labels.
    pub fn gauge(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Rc<Gauge> {
        Rc::clone(self.gauges.borrow_mut().entry(Key::new(name, labels)).or_default())
    }

    /// The histogram of that name and labels.
    pub fn histogram(&self, name: &'static str, labels: &[(&'static str, &str)]) -> Rc<Histogram> {
        Rc::clone(self.histograms.borrow_mut().entry(Key::new(name, labels)).or_default())
    }

    /// Every value as it is now.
    pub fn samples(&self) -> Vec<(Key, Sample)> {
        let counters = self.counters.borrow();
        let gauges = self.gauges.borrow();
        let histograms = self.histograms.borrow();
        let counters = counters.iter().map(|(key, value)| (key.clone(), Sample::Counter(value.get())));
        let gauges = gauges.iter().map(|(key, value)| (key.clone(), Sample::Gauge(value.get())));
        let histograms = histograms.iter().map(|(key, value)| (key.clone(), sample(value)));
        counters.chain(gauges).chain(histograms).collect()
    }
}

fn sample(histogram: &Histogram) -> Sample {
    Sample::Histogram { buckets: histogram.buckets.iter().map(Cell::get).collect(), sum: histogram.sum.get() }
}

/// The sum over all workers.
#[derive(Clone, Debug, Default)]
pub struct Merged(BTreeMap<Key, Sample>);

impl Merged {
    /// Adds one worker's values.
    pub fn add(&mut self, samples: Vec<(Key, Sample)>) {
        for (key, value) in samples {
            match self.0.get_mut(&key) {
                Some(total) => total.merge(value),
                None => {
                    self.0.insert(key, value);
                }
            }
        }
    }

    /// Prometheus text format.
    pub fn prometheus(&self) -> String {
        let mut text = String::new();
        let mut last = "";
        for (key, value) in &self.0 {
            if key.name != last {
                let _ = writeln!(text, "# TYPE {} {}", key.name, value.kind());
                last = key.name;
            }
            value.write_prometheus(key, &mut text);
        }
        text
    }

    /// Envoy's `/stats`: `name{labels}: value` lines.
    pub fn lines(&self) -> String {
        let mut text = String::new();
        for (key, value) in &self.0 {
            let labels = labels(key, None);
            let _ = match value {
                Sample::Counter(value) => writeln!(text, "{}{labels}: {value}", key.name),
                Sample::Gauge(value) => writeln!(text, "{}{labels}: {value}", key.name),
                Sample::Histogram { buckets, sum } => {
                    let count: u64 = buckets.iter().sum();
                    writeln!(text, "{}{labels}: count {count} sum {sum}", key.name)
                }
            };
        }
        text
    }
}

impl Sample {
    fn merge(&mut self, other: Self) {
        match (self, other) {
            (Self::Counter(total), Self::Counter(more)) => *total += more,
            (Self::Gauge(total), Self::Gauge(more)) => *total += more,
            (Self::Histogram { buckets, sum }, Self::Histogram { buckets: more, sum: more_sum }) => {
                buckets.iter_mut().zip(more).for_each(|(total, more)| *total += more);
                *sum += more_sum;
            }
            // A name has one kind in the whole program.
            _ => {}
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Counter(_) => "counter",
            Self::Gauge(_) => "gauge",
            Self::Histogram { .. } => "histogram",
        }
    }

    fn write_prometheus(&self, key: &Key, text: &mut String) {
        // Writing to a String cannot fail.
        let _ = match self {
            Self::Counter(value) => writeln!(text, "{}{} {value}", key.name, labels(key, None)),
            Self::Gauge(value) => writeln!(text, "{}{} {value}", key.name, labels(key, None)),
            Self::Histogram { buckets, sum } => write_histogram(key, buckets, *sum, text),
        };
    }
}

fn write_histogram(key: &Key, buckets: &[u64], sum: f64, text: &mut String) -> std::fmt::Result {
    let mut count = 0;
    for (index, bucket) in buckets.iter().enumerate() {
        count += bucket;
        let bound = BUCKETS.get(index).map_or_else(|| "+Inf".to_owned(), f64::to_string);
        writeln!(text, "{}_bucket{} {count}", key.name, labels(key, Some(&bound)))?;
    }
    writeln!(text, "{}_sum{} {sum}", key.name, labels(key, None))?;
    writeln!(text, "{}_count{} {count}", key.name, labels(key, None))
}

fn labels(key: &Key, bound: Option<&str>) -> String {
    let own = key.labels.iter().map(|(label, value)| (*label, value.as_str()));
    let all: Vec<String> = own.chain(bound.map(|bound| ("le", bound))).map(|(l, v)| format!("{l}={v:?}")).collect();
    match all.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", all.join(",")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scrape_adds_up_the_workers() {
        let (one, two) = (Stats::default(), Stats::default());
        one.counter("envoy_cluster_upstream_rq_total", &[("envoy_cluster_name", "a")]).add(2);
        two.counter("envoy_cluster_upstream_rq_total", &[("envoy_cluster_name", "a")]).add(3);
        two.histogram("istio_request_duration_milliseconds", &[]).observe(7.0);
        let mut merged = Merged::default();
        merged.add(one.samples());
        merged.add(two.samples());
        let text = merged.prometheus();
        assert!(text.contains("envoy_cluster_upstream_rq_total{envoy_cluster_name=\"a\"} 5\n"), "{text}");
        assert!(text.contains("istio_request_duration_milliseconds_bucket{le=\"5\"} 0\n"), "{text}");
        assert!(text.contains("istio_request_duration_milliseconds_bucket{le=\"10\"} 1\n"), "{text}");
        assert!(text.contains("istio_request_duration_milliseconds_count 1\n"), "{text}");
    }
}
