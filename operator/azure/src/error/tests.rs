use std::fmt::Write as _;
use std::time::Duration;

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::codes::{TABLE, When};
use super::*;

const HOUR: Duration = Duration::from_hours(1);
const FIVE_MINUTES: Duration = Duration::from_mins(5);
const TEN_MINUTES: Duration = Duration::from_mins(10);

fn answer(status: u16, body: &str) -> AzureError {
    AzureError::from_answer(status, None, body.as_bytes())
}

fn failed(error: &Value) -> AzureError {
    AzureError::from_operation(Some(error))
}

/// A wrong class makes the operator hammer a full zone, or give up on what would pass by itself.
#[test]
fn answers_of_both_envelopes_and_of_none_are_told_apart() {
    let busy = r#"{"code":"OperationNotAllowed","details":null,"message":"Operation is not allowed: Another agentpool operation (user - Creating) is in progress, please wait for it to finish before starting a new operation. See https://aka.ms/aks-pending-operation for more details","subcode":""}"#;
    let busy_cluster = r#"{"code":"OperationNotAllowed","details":null,"message":"Operation is not allowed: Another operation (Updating) is in progress","subcode":""}"#;
    let immutable = r#"{"code":"PropertyChangeNotAllowed","details":null,"message":"Changing property 'properties.vmSize' is not allowed.","subcode":"","target":"properties.vmSize"}"#;
    let immutable_too = r#"{"code":"OperationNotAllowed","message":"Changing property 'properties.maxPods' is not allowed."}"#;
    let quota = r#"{"code":"OperationNotAllowed","message":"Operation could not be completed as it results in exceeding approved LowPriorityCores quota."}"#;
    let retired = r#"{"error":{"code":"NoRegisteredProviderFound","message":"No registered resource provider found for location 'eastus' and API version '2023-03-02-preview' for type 'managedClusters'. The supported api-versions are '…'."}}"#;
    let unknown_field = r#"{"code":"UnmarshalError","details":null,"message":"UnmarshalEntity encountered error: json: unknown field \"sshAccess\"","subcode":""}"#;
    for (status, body, class, code) in [
        (409, busy, Class::Conflict, "OperationNotAllowed"),
        (409, busy_cluster, Class::Conflict, "OperationNotAllowed"),
        (400, immutable_too, Class::Invalid, "OperationNotAllowed"),
        (400, quota, Class::Capacity, "QuotaExceeded"),
        (409, quota, Class::Capacity, "QuotaExceeded"),
        (400, immutable, Class::Invalid, "PropertyChangeNotAllowed"),
        (412, r#"{"code":"PreconditionFailed","message":"x"}"#, Class::Conflict, "PreconditionFailed"),
        (412, r#"{"code":"SomethingNew","message":"x"}"#, Class::Conflict, "SomethingNew"),
        (409, r#"{"code":"EtagMismatch","message":"x"}"#, Class::Conflict, "EtagMismatch"),
        (
            404,
            r#"{"error":{"code":"ResourceNotFound","message":"The Resource was not found"}}"#,
            Class::Invalid,
            "ResourceNotFound",
        ),
        (
            403,
            r#"{"error":{"code":"AuthorizationFailed","message":"no"}}"#,
            Class::Denied,
            "AuthorizationFailed",
        ),
        (
            401,
            r#"{"error":{"code":"ExpiredAuthenticationToken","message":"no"}}"#,
            Class::Denied,
            "ExpiredAuthenticationToken",
        ),
        (
            409,
            r#"{"error":{"code":"ScopeLocked","message":"The scope is locked"}}"#,
            Class::Denied,
            "ScopeLocked",
        ),
        (
            403,
            r#"{"error":{"code":"RequestDisallowedByPolicy","message":"x","policyDetails":[]}}"#,
            Class::Denied,
            "RequestDisallowedByPolicy",
        ),
        (429, r#"{"code":"Throttled","message":"wait"}"#, Class::Throttled, "Throttled"),
        (429, r#"{"code":"AllocationFailed","message":"not really"}"#, Class::Throttled, "AllocationFailed"),
        (400, retired, Class::Invalid, "NoRegisteredProviderFound"),
        (400, unknown_field, Class::Invalid, "UnmarshalError"),
        (
            400,
            r#"{"code":"ErrCode_InsufficientVCPUQuota","message":"Insufficient vcpu quota requested 8, remaining 0 for family standardDSv3Family"}"#,
            Class::Capacity,
            "ErrCode_InsufficientVCPUQuota",
        ),
        (400, r#"{"code":"InsufficientSubnetSize","message":"x"}"#, Class::Invalid, "InsufficientSubnetSize"),
        (400, r#"{"code":"VMSizeNotSupported","message":"x"}"#, Class::Invalid, "VMSizeNotSupported"),
        (400, r#"{"code":"vmsizenotsupported","message":"x"}"#, Class::Invalid, "VMSizeNotSupported"),
        (
            500,
            r#"{"code":"InternalOperationError","message":"x"}"#,
            Class::Transient,
            "InternalOperationError",
        ),
        (400, r#"{"code":"BrandNew","message":"x"}"#, Class::Invalid, "BrandNew"),
        (
            400,
            r#"{"error":"invalid_client","error_description":"AADSTS700016: no such application"}"#,
            Class::Invalid,
            "invalid_client",
        ),
        (500, "<html>", Class::Transient, "Http500"),
        (502, "", Class::Transient, "Http502"),
        (408, "", Class::Transient, "Http408"),
        (400, "[1]", Class::Invalid, "Http400"),
        (403, "Access denied by the company's proxy", Class::Denied, "Http403"),
        (503, r#"{"error":{"code":"","message":"x"}}"#, Class::Transient, "Http503"),
    ] {
        let error = answer(status, body);
        assert_eq!((error.class, error.code.as_str()), (class, code), "{status} {body}");
        assert!(!error.advice.is_empty());
    }
}

/// What is to be avoided decides where the next node is asked for: too little wastes the minutes that a
/// workload has, too much buys on-demand for nothing.
#[test]
fn failed_operations_say_what_to_avoid_and_for_how_long() {
    let quota = |limit: u32, name: &str| {
        let message = format!(
            "Operation could not be completed as it results in exceeding approved {name} quota. Additional details - Deployment Model: Resource Manager, Location: eastus, Current Limit: {limit}, Current Usage: 0, Additional Required: 6, (Minimum) New Limit Required: 6. Submit a request for Quota increase"
        );
        json!({
            "code": "QuotaExceeded",
            "message": format!("Code=\"OperationNotAllowed\" Message=\"{message}\""),
            "details": [{"code": "OperationNotAllowed", "message": message}]
        })
    };
    let zonal = json!({
        "code": "ZonalAllocationFailed",
        "message": "Code=\"ZonalAllocationFailed\" Message=\"Allocation failed. We do not have sufficient capacity for the requested VM size Standard_D4s_v5 in zone 2. Read more about improving likelihood of allocation success at http://aka.ms/allocation-guidance\"",
        "details": [{"code": "ZonalAllocationFailed", "message": "Allocation failed. We do not have sufficient capacity for the requested VM size Standard_D4s_v5 in zone 2."}]
    });
    let overconstrained = json!({
        "code": "OverconstrainedZonalAllocationRequest",
        "message": "original error: Code=\"OverconstrainedZonalAllocationRequest\" Message=\"Allocation failed. VM(s) with the following constraints cannot be allocated, because the condition is too restrictive. Constraints applied are:\\n  - Availability Zone\\n  - Low Priority VMs\\n\"",
        "details": [{"code": "OverconstrainedZonalAllocationRequest", "message": "x", "target": "6"}]
    });
    let wrapped = json!({
        "code": "ReconcileVMSSAgentPoolFailed",
        "message": "We are unable to serve this request due to an internal error, Correlation ID: 3a0f, Operation ID: 5b, Code=\"AllocationFailed\" Message=\"Allocation failed.\""
    });
    let escaped = json!({
        "code": "ReconcileVMSSAgentPoolFailed",
        "message": "VMSSAgentPoolReconciler retry failed: Category: ClientError; Code=\\\"SkuNotAvailable\\\" Message=\\\"The requested VM size for resource 'Following SKUs have failed for Capacity Restrictions: Standard_D8s_v5' is currently not available in location 'eastus'.\\\""
    });
    let inside_json = json!({
        "code": "CreateVMSSAgentPoolFailed",
        "message": "original error: {\"error\":{\"code\":\"OverconstrainedAllocationRequest\",\"message\":\"too restrictive\"}}"
    });
    let inside_escaped_json = json!({
        "code": "CreateVMSSAgentPoolFailed",
        "message": "failed: {\\\"code\\\":\\\"AllocationFailed\\\",\\\"message\\\":\\\"none left\\\"} (give up)"
    });
    let nested = json!({
        "error": {"code": "DeploymentFailed", "message": "At least one failed", "details": [
            {"code": "Conflict", "message": "x", "details": [{"code": "SpotPriceGreaterThanProvidedMaxPrice", "message": "0.3 > 0.2"}]}
        ]}
    });
    let only_words =
        json!({"code": "InternalOperationError2", "message": "VMSS said ZonalAllocationFailed, giving up"});
    for (error, code, scope, lasting) in [
        (quota(3, "LowPriorityCores"), "QuotaExceeded", Scope::AllSpot, TEN_MINUTES),
        (quota(0, "LowPriorityCores"), "QuotaExceeded", Scope::AllSpot, HOUR),
        (quota(8, "standardDSv3Family Cores"), "QuotaExceeded", Scope::Size, TEN_MINUTES),
        (quota(10, "Total Regional Cores"), "QuotaExceeded", Scope::AllOnDemand, TEN_MINUTES),
        (quota(10, "Cores"), "QuotaExceeded", Scope::AllOnDemand, TEN_MINUTES),
        (zonal, "ZonalAllocationFailed", Scope::Zone, FIVE_MINUTES),
        (overconstrained, "OverconstrainedZonalAllocationRequest", Scope::Zone, FIVE_MINUTES),
        (wrapped, "AllocationFailed", Scope::Size, FIVE_MINUTES),
        (escaped, "SkuNotAvailable", Scope::Size, FIVE_MINUTES),
        (inside_json, "OverconstrainedAllocationRequest", Scope::Size, FIVE_MINUTES),
        (inside_escaped_json, "AllocationFailed", Scope::Size, FIVE_MINUTES),
        (nested, "SpotPriceGreaterThanProvidedMaxPrice", Scope::AgentPool, HOUR),
        (only_words, "ZonalAllocationFailed", Scope::Zone, FIVE_MINUTES),
    ] {
        let found = failed(&error);
        assert_eq!(found.class, Class::Capacity, "{error}");
        assert_eq!((found.code.as_str(), found.avoid), (code, Some(Avoid { scope, lasting })), "{error}");
    }
    let superseded = failed(&json!({"code": "AKSOperationPreempted", "message": "x"}));
    assert_eq!((superseded.class, superseded.avoid), (Class::Conflict, None));
    assert_eq!(failed(&json!({"code": "OriginalEtagNotExpect", "message": "x"})).class, Class::Conflict);
    let escaped =
        json!({"code": "Wrapper", "message": "failed: Code=\\\"EtagMismatch\\\" Message=\\\"a race\\\""});
    let escaped = failed(&escaped);
    assert_eq!((escaped.code.as_str(), escaped.message.as_str()), ("EtagMismatch", "a race"));
    assert_eq!(AzureError::from_operation(None).code, "OperationFailed");
}

/// A person who is told which limit, by how much, can raise it in one request.
#[test]
fn quota_errors_carry_their_figures() {
    let message = "Operation could not be completed as it results in exceeding approved LowPriorityCores quota. Additional details - Deployment Model: Resource Manager, Location: eastus, Current Limit: 3, Current Usage: 1, Additional Required: 6, (Minimum) New Limit Required: 7.";
    let body = json!({"code": "OperationNotAllowed", "message": message}).to_string();
    let error = answer(409, &body);
    let wanted = Quota {
        name: Some("LowPriorityCores".into()),
        current_limit: Some(3),
        current_usage: Some(1),
        additional_required: Some(6),
        new_limit_required: Some(7),
    };
    assert_eq!(error.quota(), Some(&wanted));
    assert_eq!(answer(400, r#"{"code":"AllocationFailed","message":"x"}"#).quota(), None);
    let family = "exceeding approved standardDSv3Family Cores quota. Current Limit: 10";
    assert_eq!(envelope::quota(family).unwrap().name.as_deref(), Some("standardDSv3FamilyCores"));
    let at_once =
        "Insufficient vcpu quota requested 8, remaining 0 for family LowPriorityCores for region eastus.";
    let quota = envelope::quota(at_once).unwrap();
    assert_eq!((quota.name.as_deref(), quota.additional_required), (Some("LowPriorityCores"), Some(8)));
}

/// The exact action that is missing ends an hour of guessing at role assignments.
#[test]
fn denials_say_which_action_is_missing_where() {
    let message = "The client '11111111-2222-3333-4444-555555555555' with object id '11111111-2222-3333-4444-555555555555' does not have authorization to perform action 'Microsoft.ContainerService/managedClusters/agentPools/write' over scope '/subscriptions/s/resourceGroups/g/providers/Microsoft.ContainerService/managedClusters/c/agentPools/p' or the scope is invalid. If access was recently granted, please refresh your credentials.";
    let body = json!({"error": {"code": "AuthorizationFailed", "message": message}}).to_string();
    let error = answer(403, &body);
    let missing = error.missing_action().unwrap();
    assert_eq!(missing.action, "Microsoft.ContainerService/managedClusters/agentPools/write");
    assert!(missing.scope.as_ref().unwrap().ends_with("/agentPools/p"));
    let linked = "The client has permission to perform action 'Microsoft.ContainerService/managedClusters/agentPools/write' on scope '/subscriptions/s'; however, it does not have permission to perform action(s) 'Microsoft.Network/virtualNetworks/subnets/join/action' on the linked scope(s) '/subscriptions/s/x/subnets/nodes' (respectively) or the linked scope(s) are invalid.";
    let body = json!({"error": {"code": "LinkedAuthorizationFailed", "message": linked}}).to_string();
    let missing = answer(403, &body).missing_action().cloned().unwrap();
    assert_eq!(missing.action, "Microsoft.Network/virtualNetworks/subnets/join/action");
    assert_eq!(missing.scope.as_deref(), Some("/subscriptions/s/x/subnets/nodes"));
    assert_eq!(
        answer(403, r#"{"error":{"code":"AuthorizationFailed","message":"no"}}"#).missing_action(),
        None
    );
}

#[test]
fn ids_for_azures_support_and_its_word_on_waiting_are_kept() {
    let response = http::Response::builder()
        .status(429)
        .header("x-ms-correlation-request-id", "9d6ba65e-0000-0000-0000-000000000001")
        .header("x-ms-request-id", "other")
        .header("Retry-After", "17")
        .body(bytes::Bytes::from_static(br#"{"code":"Throttled","message":"slow down"}"#))
        .unwrap();
    let error = AzureError::from_response(&response);
    assert_eq!(error.correlation_id(), Some("9d6ba65e-0000-0000-0000-000000000001"));
    assert_eq!(error.retry_after, Some(Duration::from_secs(17)));
    let wait = |headers: &[(&'static str, &'static str)]| {
        let headers: HeaderMap = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)))
            .collect();
        retry_after(&headers)
    };
    assert_eq!(wait(&[]), None);
    assert_eq!(wait(&[("retry-after", "soon")]), None);
    assert_eq!(wait(&[("retry-after", "-1")]), None);
    assert_eq!(wait(&[("retry-after", "99999999")]), Some(HOUR));
    assert_eq!(wait(&[("retry-after-ms", "250"), ("retry-after", "9")]), Some(Duration::from_millis(250)));
    let date = ("date", "Sat, 21 Nov 2026 07:00:00 GMT");
    assert_eq!(
        wait(&[("retry-after", "Sat, 21 Nov 2026 07:00:30 GMT"), date]),
        Some(Duration::from_secs(30))
    );
    assert_eq!(wait(&[("retry-after", "Sat, 21 Nov 2026 06:00:30 GMT"), date]), None);
}

/// A token in an Event is a token for everybody who may read Events.
#[test]
fn secrets_are_taken_out_of_messages() {
    let jwt = "eyJhbGciOiJSUzI1NiIsImtpZCI6IjEifQ.eyJhdWQiOiJodHRwczovL21hbmFnZW1lbnQuYXp1cmUuY29tIn0.c2lnbmF0dXJl-_A";
    let url = "https://management.azure.com/subscriptions/s/providers/Microsoft.ContainerService/locations/westus2/operations/1b4e?api-version=2025-03-01&t=638&c=MIIHsecretcert&s=pPs3cr3tsig&h=hashsecret";
    for (text, gone, kept) in [
        (format!("GET {url} failed"), vec!["pPs3cr3tsig", "MIIHsecretcert", "hashsecret"], "operations/1b4e"),
        (format!("token {jwt} is expired"), vec![jwt, "c2lnbmF0dXJl"], "is expired"),
        (format!("Authorization: Bearer {jwt}"), vec![jwt], "Authorization"),
        ("Authorization: Bearer abcdefghijklmnop0123456789".into(), vec!["abcdefghijklmnop"], "Bearer"),
        (format!(r#"{{"access_token":"{jwt}","expires_in":3599}}"#), vec![jwt], "expires_in"),
        (r#"{"access_token": "opaque-0123456789","x":1}"#.into(), vec!["opaque-0123456789"], "\"x\":1"),
        (r#"{\"refresh_token\":\"opaque-0123456789\"}"#.into(), vec!["opaque-0123456789"], "refresh_token"),
        (
            "client_secret=hunter2hunter2&grant_type=client_credentials".into(),
            vec!["hunter2"],
            "grant_type=client_credentials",
        ),
        ("client_assertion=a.b.c and more".into(), vec!["a.b.c"], "and more"),
        ("https://x.blob.core.windows.net/c?sv=2020&sig=AbC%2Fd%3D".into(), vec!["AbC%2Fd"], "blob.core"),
        ("see /path?code=1&sig=topsecret now".into(), vec!["topsecret"], "now"),
        ("AccountKey=Zm9vYmFy==;EndpointSuffix=core".into(), vec!["Zm9vYmFy"], "EndpointSuffix"),
        (format!("cut short: {}", &jwt[..60]), vec![&jwt[..60]], "cut short"),
        (format!("<a href='{url}'>"), vec!["pPs3cr3tsig"], "href"),
        (format!("x{jwt}/{jwt}y"), vec![jwt], "x"),
    ] {
        let clean = redact(&text);
        for secret in gone {
            assert!(!clean.contains(secret), "{clean}");
        }
        assert!(clean.contains(kept), "{clean}");
        let error = answer(400, &json!({"code": "X", "message": text}).to_string());
        assert_eq!(error.message, clean, "the same way into an error");
    }
    for harmless in [
        "The client does not have authorization to perform action 'a/b' over scope '/subscriptions/s'",
        "a bearer token is needed, see https://aka.ms/aks-pending-operation for more",
        "Current Limit: 3, Current Usage: 0. Is that enough? No.",
        "json: unknown field \"sshAccess\"",
        "eyJ is how they begin",
    ] {
        assert_eq!(redact(harmless), harmless);
    }
}

#[test]
fn long_messages_are_cut_between_characters() {
    let error = AzureError::new(Class::Invalid, "x", "ä".repeat(1_000));
    assert!(error.message.len() <= LONGEST_MESSAGE + 4 && error.message.ends_with('…'));
}

#[test]
fn every_code_has_one_meaning_for_each_condition_and_a_sentence_for_a_person() {
    let mut seen = std::collections::BTreeSet::new();
    for row in TABLE {
        assert!(seen.insert((row.code, format!("{:?}", row.when))), "{} is there twice", row.code);
        assert!(
            row.advice.ends_with('.') && !row.meaning.is_empty() && !row.meaning.ends_with('.'),
            "{row:?}"
        );
        assert!(row.class != Class::Capacity || row.avoid.is_some(), "{row:?}");
        assert!(TABLE.iter().any(|other| other.code == row.known_as), "{row:?}");
    }
}

proptest! {
    /// Azure's bodies come from many hands: none may hang, panic or leak a token.
    #[test]
    fn anything_can_be_read(status in 0_u16..700, body in any::<Vec<u8>>(), text in ".{0,200}") {
        let _ = AzureError::from_answer(status, None, &body);
        let quoted = json!({"code": text, "message": format!("{text} Code=\"{text}\" Message=\"{text}\" {{{text}}}")});
        let error = AzureError::from_answer(status, None, quoted.to_string().as_bytes());
        prop_assert!(error.message.len() <= LONGEST_MESSAGE + 4);
        let _ = (redact(&text), envelope::quota(&text), envelope::missing_action(&text));
    }

    #[test]
    fn a_token_never_gets_through(before in "[ -~]{0,30}", token in "eyJ[A-Za-z0-9_-]{20,60}\\.[A-Za-z0-9_-]{10,80}", after in "[ -~]{0,30}") {
        let clean = redact(&format!("{before}{token}{after}"));
        prop_assert!(!clean.contains(&token), "{clean}");
    }

    #[test]
    fn deep_nesting_ends(depth in 0_usize..200) {
        let mut error = json!({"code": "AllocationFailed", "message": "x"});
        for _ in 0..depth {
            error = json!({"code": "Outer", "message": "x", "details": [error]});
        }
        let _ = AzureError::from_operation(Some(&error));
    }
}

/// What people look up when an Event names a code is what the program does.
#[test]
fn the_reference_is_current() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/reference/azure-errors.md");
    let wanted = reference();
    if std::env::var_os("UPDATE").is_some() {
        std::fs::write(path, &wanted).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(found == wanted, "{path} is not what the table says; run UPDATE=1 cargo test -p spotpool-azure");
}

fn reference() -> String {
    let mut text = String::from(
        "# Azure's errors\n\n\
         What the operator makes of each error code of Azure's. Made from the table in\n\
         `operator/azure/src/error/codes.rs` by `UPDATE=1 cargo test -p spotpool-azure`.\n\n\
         - **Class**: `Conflict` is read again and planned anew. `Transient` is tried again. `Throttled` waits as long\n  \
           as Azure says. `Invalid` and `Denied` need a person. `Capacity` is asked for elsewhere.\n\
         - **Avoided**: what is not asked for again, and for how long. `Size` and `Zone` mean every agent pool of that VM\n  \
           size and priority (in the same zones). Quota lasts an hour in place of ten minutes when the limit is 0; spot\n  \
           cores (`LowPriorityCores`) reach all spot agent pools, the region's cores all on-demand ones.\n\
         - The innermost code that is in this table decides, wherever Azure hides it: in `details`, in a\n  \
           `Code=\"…\" Message=\"…\"` of a message, or in JSON inside a message.\n\
         - A code that is not here goes by the HTTP status: 401 and 403 `Denied`, 409 and 412 `Conflict`, 429\n  \
           `Throttled`, 408 and 5xx `Transient`, other 4xx `Invalid`; a failed operation `Transient`.\n\n\
         | Code | Meaning | Class | Avoided | What to do |\n\
         | --- | --- | --- | --- | --- |\n",
    );
    for row in TABLE {
        let when = match row.when {
            When::Always => String::new(),
            When::Status(status) => format!(" ({status})"),
            When::Mentions(words) => format!(" (message has \"{words}\"; known as `{}`)", row.known_as),
        };
        let avoided = row.avoid.map_or_else(
            || "–".to_owned(),
            |avoid| format!("`{}` for {} min", avoid.scope, avoid.lasting.as_secs() / 60),
        );
        let (code, meaning, class, advice) = (row.code, row.meaning, row.class, row.advice);
        writeln!(text, "| `{code}`{when} | {meaning} | `{class}` | {avoided} | {advice} |").unwrap();
    }
    text
}
