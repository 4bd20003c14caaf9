//! Azure's clouds, which share nothing but the software.

/// One of Azure's clouds.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, strum::Display, strum::EnumString, strum::VariantNames,
)]
#[strum(ascii_case_insensitive)]
pub enum Cloud {
    /// Azure as most have it.
    #[default]
    Public,
    /// Azure Government of the United States.
    UsGovernment,
    /// Azure China, run by 21Vianet.
    China,
}

impl Cloud {
    /// Where Azure Resource Manager answers, Resource Graph with it.
    pub fn arm_endpoint(self) -> &'static str {
        match self {
            Self::Public => "https://management.azure.com/",
            Self::UsGovernment => "https://management.usgovcloudapi.net/",
            Self::China => "https://management.chinacloudapi.cn/",
        }
    }

    /// Where Microsoft Entra ID signs in.
    pub fn authority_host(self) -> &'static str {
        match self {
            Self::Public => "https://login.microsoftonline.com/",
            Self::UsGovernment => "https://login.microsoftonline.us/",
            Self::China => "https://login.chinacloudapi.cn/",
        }
    }

    /// What a token for ARM is asked for.
    pub fn scope(self) -> &'static str {
        match self {
            Self::Public => "https://management.azure.com/.default",
            Self::UsGovernment => "https://management.usgovcloudapi.net/.default",
            Self::China => "https://management.chinacloudapi.cn/.default",
        }
    }

    /// Where the Retail Prices API answers. It knows the prices of the public cloud alone.
    pub fn prices_endpoint(self) -> Option<&'static str> {
        match self {
            Self::Public => Some("https://prices.azure.com/api/retail/prices"),
            Self::UsGovernment | Self::China => None,
        }
    }

    /// Why there is no spot capacity in this cloud, where there is none.
    pub fn why_no_spot(self) -> Option<&'static str> {
        match self {
            Self::Public | Self::UsGovernment => None,
            Self::China => {
                Some("Azure China (21Vianet) sells no spot VMs, so there is nothing for SpotPool to manage")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever gives a cloud must reach that cloud's own hosts: a token of one is worth nothing in another.
    #[test]
    fn every_cloud_stays_by_itself() {
        for (name, cloud, domain) in [
            ("Public", Cloud::Public, "azure.com"),
            ("UsGovernment", Cloud::UsGovernment, "usgovcloudapi.net"),
            ("usgovernment", Cloud::UsGovernment, "usgovcloudapi.net"),
            ("China", Cloud::China, "chinacloudapi.cn"),
        ] {
            assert_eq!(name.parse::<Cloud>().unwrap(), cloud);
            assert!(cloud.arm_endpoint().contains(domain) && cloud.scope().contains(domain), "{cloud}");
            assert!(cloud.scope().starts_with(cloud.arm_endpoint()), "{cloud}");
            assert_eq!(cloud.prices_endpoint().is_some(), cloud == Cloud::Public);
            assert_eq!(cloud.why_no_spot().is_some(), cloud == Cloud::China);
        }
        assert!("Germany".parse::<Cloud>().is_err());
    }
}
