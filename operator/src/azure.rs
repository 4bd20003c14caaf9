//! How the operator reaches Azure: its flags, and what is made of them.

use std::sync::Arc;

use clap::ValueEnum;
use jiff::Timestamp;
use spotpool_azure::{
    ApiVersion, Arm, ArmConfig, Authorized, AzureError, Clock, Cloud, ClusterId, ComputeInstances,
    CredentialKind, HttpOptions, HttpsTransport, Prices, ResourceGraph, RetailPrices, SpotPlacementScores,
    Transport, WriteGate, is_loopback,
};
use spotpool_runtime::args::CommonArgs;
use spotpool_runtime::client;
use spotpool_runtime::exit::ConfigError;
use url::Url;

use crate::market::{Market, Sources};

/// Which cluster is managed, and how Azure is reached.
#[derive(Clone, Debug, clap::Args)]
pub struct AzureArgs {
    /// Azure subscription of the cluster.
    #[arg(long, env = "SUBSCRIPTION_ID")]
    pub subscription_id: String,
    /// Resource group of the cluster (not of its nodes).
    #[arg(long, env = "RESOURCE_GROUP")]
    pub resource_group: String,
    /// Name of the AKS cluster.
    #[arg(long, env = "CLUSTER_NAME")]
    pub cluster_name: String,
    /// Azure's cloud.
    #[arg(long, env = "AZURE_CLOUD", default_value = "Public", value_parser = cloud, value_name = "Public|UsGovernment|China")]
    pub azure_cloud: Cloud,
    /// ARM's address, in place of the cloud's own.
    #[arg(long, env = "AZURE_ENDPOINT", value_name = "URL")]
    pub azure_endpoint: Option<Url>,
    /// Where the Retail Prices API answers, in place of Azure's own. Without it no prices are read where
    /// --azure-endpoint is given, or where Azure's cloud has none.
    #[arg(long, env = "PRICES_ENDPOINT", value_name = "URL")]
    pub prices_endpoint: Option<Url>,
    /// Currency of all prices, by ISO 4217.
    #[arg(long, env = "CURRENCY", default_value = "USD", value_parser = currency)]
    pub currency: String,
    /// How to sign in to Azure. `none` is for a simulator on this machine.
    #[arg(long, env = "AZURE_CREDENTIAL", value_enum, default_value = "workload-identity")]
    pub azure_credential: Credential,
    /// Client id of a user-assigned managed identity, for `managed-identity`. Default: the system-assigned one.
    #[arg(long, env = "AZURE_CLIENT_ID", value_name = "ID")]
    pub azure_client_id: Option<String>,
    /// GA version of AKS's API for every request.
    #[arg(long, env = "AZURE_API_VERSION", default_value_t = ApiVersion::default(), value_name = "YYYY-MM-DD")]
    pub azure_api_version: ApiVersion,
}

/// How to sign in to Azure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Credential {
    /// As the Pod's service account, federated with an identity in Entra ID.
    WorkloadIdentity,
    /// As an identity of the VM.
    ManagedIdentity,
    /// As whoever is logged in to the Azure CLI.
    AzureCli,
    /// Unsigned requests, to this machine only.
    None,
}

fn cloud(text: &str) -> Result<Cloud, String> {
    let cloud: Cloud = text.parse().map_err(|_| "must be Public, UsGovernment or China".to_owned())?;
    cloud.why_no_spot().map_or(Ok(cloud), |why| Err(why.to_owned()))
}

fn currency(text: &str) -> Result<String, String> {
    if text.len() == 3 && text.bytes().all(|byte| byte.is_ascii_uppercase()) {
        Ok(text.to_owned())
    } else {
        Err("must be three capital letters, such as USD".into())
    }
}

impl AzureArgs {
    /// The way to the cluster's agent pools, and to what the market says of them. Nothing is asked of Azure yet: what is wrong there shows in
    /// `AzureReachable`, and the operator goes on watching.
    pub fn connect(
        &self,
        common: &CommonArgs,
        user_agent: &str,
        may_write: WriteGate,
    ) -> Result<(Arm, Market, ComputeInstances), ConfigError> {
        let endpoint = self.endpoint()?;
        let mut options = HttpOptions::new(user_agent);
        options.extra_roots = client::extra_roots(common)?;
        let wrong =
            |flag: &'static str| move |error: AzureError| ConfigError(format!("--{flag}: {}", error.message));
        let https = Arc::new(HttpsTransport::new(options).map_err(wrong("ca-bundle"))?);
        let clock: spotpool_azure::Clock = Arc::new(Timestamp::now);
        let credential = match self.azure_credential {
            Credential::WorkloadIdentity => CredentialKind::WorkloadIdentity,
            Credential::ManagedIdentity => {
                CredentialKind::ManagedIdentity { client_id: self.azure_client_id.clone() }
            }
            Credential::AzureCli => CredentialKind::AzureCli,
            Credential::None => CredentialKind::None,
        };
        let environment = |name: &str| std::env::var(name).ok();
        let tokens = credential.token_source(self.azure_cloud, https.clone(), &environment, clock.clone());
        let transport =
            Arc::new(Authorized::new(https.clone(), &endpoint, tokens).map_err(wrong("azure-endpoint"))?);
        let market = self.market(&endpoint, https, transport.clone(), clock.clone())?;
        let cluster = ClusterId {
            subscription_id: self.subscription_id.clone(),
            resource_group: self.resource_group.clone(),
            cluster_name: self.cluster_name.clone(),
        };
        let instances = ComputeInstances::new(transport.clone(), endpoint.clone(), may_write.clone())
            .map_err(wrong("azure-endpoint"))?;
        let (api_version, user_agent) = (self.azure_api_version.clone(), user_agent.to_owned());
        let arm =
            Arm::new(ArmConfig { endpoint, cluster, api_version, user_agent, transport, may_write, clock })
                .map_err(wrong("azure-endpoint"))?;
        Ok((arm, market, instances))
    }

    fn market(
        &self,
        endpoint: &Url,
        https: Arc<HttpsTransport>,
        transport: Arc<dyn Transport>,
        clock: Clock,
    ) -> Result<Market, ConfigError> {
        let own = self.azure_cloud.prices_endpoint().filter(|_| self.azure_endpoint.is_none());
        let prices_endpoint = match (&self.prices_endpoint, own) {
            (Some(given), _) => Some(given.clone()),
            (None, Some(own)) => {
                Some(Url::parse(own).map_err(|error| ConfigError(format!("--azure-cloud: {error}")))?)
            }
            (None, None) => None,
        };
        let (endpoint, subscription) = (endpoint.clone(), self.subscription_id.clone());
        let currency = self.currency.clone();
        let open = move |region: &str| {
            let clock = || clock.clone();
            let prices = match &prices_endpoint {
                Some(at) => {
                    let prices = RetailPrices::new(https.clone(), at.clone(), region, &currency, clock())?;
                    Some(Arc::new(prices) as Arc<dyn Prices>)
                }
                None => None,
            };
            let rates = ResourceGraph::new(transport.clone(), &endpoint, &subscription, region, clock())?;
            let scores =
                SpotPlacementScores::new(transport.clone(), &endpoint, &subscription, region, clock())?;
            Ok(Sources { prices, rates: Arc::new(rates), scores: Arc::new(scores) })
        };
        Ok(Market::new(Box::new(open), &self.currency))
    }

    fn endpoint(&self) -> Result<Url, ConfigError> {
        let endpoint = match &self.azure_endpoint {
            Some(endpoint) => endpoint.clone(),
            None => Url::parse(self.azure_cloud.arm_endpoint())
                .map_err(|error| ConfigError(format!("--azure-cloud: {error}")))?,
        };
        // Unsigned requests may go nowhere but to a simulator beside us.
        if self.azure_credential == Credential::None && !is_loopback(&endpoint) {
            return Err(ConfigError(format!(
                "--azure-credential none: only for an --azure-endpoint on this machine, not {endpoint}"
            )));
        }
        if endpoint.scheme() != "https" && !is_loopback(&endpoint) {
            return Err(ConfigError(format!(
                "--azure-endpoint {endpoint}: must be https, so that no token is seen"
            )));
        }
        Ok(endpoint)
    }
}
