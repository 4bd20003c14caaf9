//! What can go wrong, each told in one sentence that says what to do.

use std::process::ExitCode;

use kube::core::Status;

/// Why a command ends without success.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No kubeconfig, or one that cannot be used.
    #[error("cannot use the kubeconfig: {0}")]
    Config(String),
    /// The CRD is missing.
    #[error(
        "the cluster at {0} does not know SpotPools: install SpotPool's CustomResourceDefinition (crds/yaml/spotpools.yaml), or choose another cluster with --context"
    )]
    NoApi(String),
    /// RBAC says no.
    #[error(
        "you may not {verb} {resource}{place}: ask for that right, which `kubectl auth can-i {verb} {resource}{flag}` shows"
    )]
    Denied {
        /// What was tried.
        verb: &'static str,
        /// On what.
        resource: &'static str,
        /// Where, for people.
        place: String,
        /// Where, for kubectl.
        flag: String,
    },
    /// Nobody is signed in.
    #[error(
        "the cluster at {0} does not know who you are: sign in again (az aks get-credentials, or kubelogin)"
    )]
    SignedOut(String),
    /// No answer.
    #[error("cannot reach the cluster at {server}: {why}")]
    Unreachable {
        /// Its address.
        server: String,
        /// What happened.
        why: String,
    },
    /// The API server did not like it.
    #[error("{0}")]
    Refused(String),
    /// There is none of this name.
    #[error("{0}")]
    NotFound(String),
    /// The operator is not at work; whatever is shown may be old.
    #[error("{0}")]
    NoOperator(String),
    /// A wish was not answered in time.
    #[error("{0}")]
    NoAnswer(String),
    /// Options that do not go together.
    #[error("{0}")]
    Usage(String),
    /// A file cannot be read.
    #[error("{0}")]
    File(String),
    /// The answer cannot be written.
    #[error("cannot write the answer: {0}")]
    Output(String),
    /// `doctor` has found something, and has said it.
    #[error("something is wrong")]
    Unhealthy,
}

impl Error {
    /// One line for standard error, unless all is said.
    pub fn sentence(&self) -> Option<String> {
        match self {
            Self::Unhealthy => None,
            error => Some(error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")),
        }
    }

    /// 1 for a cluster that is not as it should be, 2 for a setting that cannot work.
    pub fn code(&self) -> ExitCode {
        ExitCode::from(match self {
            Self::Config(_) | Self::Usage(_) => 2,
            _ => 1,
        })
    }

    /// What a request has met, `verb` on `resource`, in `namespace` if it was only there.
    pub fn of(
        error: kube::Error,
        server: &str,
        verb: &'static str,
        resource: &'static str,
        namespace: Option<&str>,
    ) -> Self {
        let place = |before: &str, otherwise: &str| {
            namespace.map_or_else(|| otherwise.to_owned(), |namespace| format!("{before}{namespace}"))
        };
        match error {
            kube::Error::Api(status) => match status.code {
                401 => Self::SignedOut(server.into()),
                403 if is_right(&status) => Self::Denied {
                    verb,
                    resource,
                    place: place(" in namespace ", " in this cluster"),
                    flag: place(" -n ", " -A"),
                },
                404 if resource.contains("spotpools") && is_no_api(&status) => Self::NoApi(server.into()),
                404 => Self::NotFound(status.message.clone()),
                _ => Self::Refused(format!("the cluster refused to {verb} {resource}: {}", status.message)),
            },
            error => Self::Unreachable { server: server.into(), why: cause(&error) },
        }
    }

    /// Whether a right is missing.
    pub fn is_denied(&self) -> bool {
        matches!(self, Self::Denied { .. })
    }
}

/// Admission refuses with 403 too, and says why.
fn is_right(status: &Status) -> bool {
    status.message.contains("cannot ") || status.message.is_empty()
}

/// The path is unknown, not the object.
fn is_no_api(status: &Status) -> bool {
    status.message.contains("404 page not found")
        || status.message.contains("could not find the requested resource")
}

/// The innermost cause: what is around it is about how the request was made.
fn cause(error: &dyn std::error::Error) -> String {
    let mut last: &dyn std::error::Error = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(code: u16, message: &str) -> Error {
        let status = Status::failure(message, "").with_code(code);
        Error::of(kube::Error::Api(Box::new(status)), "https://c", "list", "spotpools.spotpool.dev", None)
    }

    #[test]
    fn each_trouble_is_one_sentence_that_says_what_to_do() {
        for (error, wanted) in [
            (refused(404, "404 page not found\n"), "install SpotPool's CustomResourceDefinition"),
            (refused(404, "the server could not find the requested resource"), "does not know SpotPools"),
            (
                refused(403, "spotpools is forbidden: User \"u\" cannot list resource"),
                "kubectl auth can-i list",
            ),
            (refused(403, "admission policy says no"), "admission policy says no"),
            (refused(401, "Unauthorized"), "sign in again"),
            (refused(500, "boom"), "boom"),
        ] {
            let sentence = error.sentence().unwrap();
            assert!(sentence.contains(wanted) && !sentence.contains('\n'), "{sentence}");
        }
    }
}
