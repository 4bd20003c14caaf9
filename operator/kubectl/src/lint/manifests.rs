//! Reading manifests: files, folders and standard input; several documents, and Lists.

use std::io::Read;
use std::path::{Path, PathBuf};

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::autoscaling::v2::{HorizontalPodAutoscaler, HorizontalPodAutoscalerSpec};
use k8s_openapi::api::batch::v1::{CronJob, Job, JobSpec};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize as _;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::Error;
use crate::workload::Workload;

/// What is looked at, for people.
const KINDS: &str =
    "Deployment, StatefulSet, Job, CronJob, Pod, PodDisruptionBudget or HorizontalPodAutoscaler";

/// An object, and the file that it is from.
#[derive(Debug)]
pub struct Of<K> {
    pub file: String,
    pub object: K,
}

/// What runs pods.
#[derive(Debug)]
pub enum Runner {
    Deployment(Box<Deployment>),
    StatefulSet(Box<StatefulSet>),
    Job(Box<Job>),
    CronJob(Box<CronJob>),
    Pod(Box<Pod>),
}

/// All that was read and is looked at.
#[derive(Debug, Default)]
pub struct Manifests {
    pub runners: Vec<Of<Runner>>,
    pub budgets: Vec<Of<PodDisruptionBudget>>,
    pub autoscalers: Vec<Of<HorizontalPodAutoscaler>>,
    pub objects: usize,
}

impl Manifests {
    /// From a file, from all in a folder, or from standard input, which is `-`.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let mut manifests = Self::default();
        if path.as_os_str() == "-" {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).map_err(|error| unreadable(path, &error))?;
            manifests.add(&text, "standard input")?;
        } else {
            for file in files(path)? {
                let text = std::fs::read_to_string(&file).map_err(|error| unreadable(&file, &error))?;
                manifests.add(&text, &file.display().to_string())?;
            }
        }
        if manifests.objects == 0 {
            return Err(Error::File(format!("{}: there is no {KINDS} in it", path.display())));
        }
        Ok(manifests)
    }

    /// Adds the objects of a text.
    pub fn add(&mut self, text: &str, file: &str) -> Result<(), Error> {
        for document in serde_yaml_ng::Deserializer::from_str(text) {
            let value = Value::deserialize(document).map_err(|error| {
                Error::File(format!("{file}: this is no YAML that can be applied: {error}"))
            })?;
            self.add_value(value, file)?;
        }
        Ok(())
    }

    fn add_value(&mut self, mut value: Value, file: &str) -> Result<(), Error> {
        let kind = value["kind"].as_str().unwrap_or_default().to_owned();
        if let Some(Value::Array(items)) = value.get_mut("items").filter(|_| kind.ends_with("List")) {
            return std::mem::take(items).into_iter().try_for_each(|item| self.add_value(item, file));
        }
        let version = value["apiVersion"].as_str().unwrap_or_default();
        let group = version.split_once('/').map_or("", |(group, _)| group).to_owned();
        let file = file.to_owned();
        match (group.as_str(), kind.as_str()) {
            ("policy", "PodDisruptionBudget") => {
                let object = parse(value, &file)?;
                self.budgets.push(Of { file, object });
            }
            ("autoscaling", "HorizontalPodAutoscaler") => {
                let object = parse(value, &file)?;
                self.autoscalers.push(Of { file, object });
            }
            (group, kind) => {
                let object = match (group, kind) {
                    ("apps", "Deployment") => Runner::Deployment(parse(value, &file)?),
                    ("apps", "StatefulSet") => Runner::StatefulSet(parse(value, &file)?),
                    ("batch", "Job") => Runner::Job(parse(value, &file)?),
                    ("batch", "CronJob") => Runner::CronJob(parse(value, &file)?),
                    ("", "Pod") => Runner::Pod(parse(value, &file)?),
                    _ => return Ok(()),
                };
                self.runners.push(Of { file, object });
            }
        }
        self.objects += 1;
        Ok(())
    }

    /// What runs pods, and the file that it is from.
    pub fn workloads(&self) -> impl Iterator<Item = (&str, &Runner, Workload<'_>)> {
        self.runners.iter().filter_map(|it| {
            let meta = it.object.meta();
            let replicas = self.autoscaler(it.object.kind(), meta).map(least).or(it.object.replicas());
            let (pods, spec) = it.object.pods()?;
            let workload = Workload::of(it.object.kind(), meta, replicas, pods, spec);
            Some((it.file.as_str(), &it.object, workload))
        })
    }

    /// The autoscaler that sets the number of its pods.
    pub fn autoscaler(&self, kind: &str, meta: &ObjectMeta) -> Option<&HorizontalPodAutoscalerSpec> {
        let its = self.autoscalers.iter().filter(|it| it.object.metadata.namespace == meta.namespace);
        its.filter_map(|it| it.object.spec.as_ref()).find(|spec| {
            spec.scale_target_ref.kind == kind && Some(&spec.scale_target_ref.name) == meta.name.as_ref()
        })
    }
}

fn least(autoscaler: &HorizontalPodAutoscalerSpec) -> i32 {
    autoscaler.min_replicas.unwrap_or(1)
}

impl Runner {
    /// Its kind.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Deployment(_) => "Deployment",
            Self::StatefulSet(_) => "StatefulSet",
            Self::Job(_) => "Job",
            Self::CronJob(_) => "CronJob",
            Self::Pod(_) => "Pod",
        }
    }

    /// Its own metadata.
    pub fn meta(&self) -> &ObjectMeta {
        match self {
            Self::Deployment(object) => &object.metadata,
            Self::StatefulSet(object) => &object.metadata,
            Self::Job(object) => &object.metadata,
            Self::CronJob(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
        }
    }

    /// How many pods it says that it wants.
    pub fn replicas(&self) -> Option<i32> {
        match self {
            Self::Deployment(object) => object.spec.as_ref()?.replicas,
            Self::StatefulSet(object) => object.spec.as_ref()?.replicas,
            Self::Job(_) | Self::CronJob(_) => self.job()?.parallelism,
            Self::Pod(_) => None,
        }
    }

    fn pods(&self) -> Option<(Option<&ObjectMeta>, &PodSpec)> {
        let template = match self {
            Self::Deployment(object) => &object.spec.as_ref()?.template,
            Self::StatefulSet(object) => &object.spec.as_ref()?.template,
            Self::Job(_) | Self::CronJob(_) => &self.job()?.template,
            Self::Pod(object) => return Some((Some(&object.metadata), object.spec.as_ref()?)),
        };
        Some((template.metadata.as_ref(), template.spec.as_ref()?))
    }

    /// What a Job or a CronJob says of Jobs.
    pub fn job(&self) -> Option<&JobSpec> {
        match self {
            Self::Job(object) => object.spec.as_ref(),
            Self::CronJob(object) => object.spec.as_ref()?.job_template.spec.as_ref(),
            _ => None,
        }
    }
}

/// As the type of its kind. Versions do not matter: what is looked at is alike in all.
fn parse<K: DeserializeOwned>(mut value: Value, file: &str) -> Result<K, Error> {
    let name = value["metadata"]["name"].as_str().unwrap_or("without a name").to_owned();
    let kind = value["kind"].as_str().unwrap_or_default().to_owned();
    if let Value::Object(fields) = &mut value {
        fields.remove("apiVersion");
        fields.remove("kind");
    }
    serde_json::from_value(value).map_err(|error| Error::File(format!("{file}: {kind} {name}: {error}")))
}

fn unreadable(path: &Path, error: &std::io::Error) -> Error {
    Error::File(format!("cannot read {}: {error}", path.display()))
}

/// The file, or those of a folder and of all below it, in order.
fn files(path: &Path) -> Result<Vec<PathBuf>, Error> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).map_err(|error| unreadable(path, &error))?;
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|error| unreadable(path, &error))?;
        let is_manifest = entry
            .path()
            .extension()
            .is_some_and(|it| ["yaml", "yml", "json"].map(Into::into).contains(&it.to_owned()));
        // A link to a folder may lead round in a circle.
        let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if is_folder {
            found.extend(files(&entry.path())?);
        } else if is_manifest {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}
