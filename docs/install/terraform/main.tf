# The operator's identity, its trust in the operator's ServiceAccount, and its roles.

data "azurerm_subscription" "this" {}

data "azurerm_kubernetes_cluster" "this" {
  name                = var.cluster_name
  resource_group_name = var.resource_group_name
}

data "azurerm_resource_group" "nodes" {
  name = data.azurerm_kubernetes_cluster.this.node_resource_group
}

resource "azurerm_user_assigned_identity" "spotpool" {
  name                = "spotpool-${var.cluster_name}"
  resource_group_name = var.resource_group_name
  location            = data.azurerm_kubernetes_cluster.this.location
}

resource "azurerm_federated_identity_credential" "operator" {
  name                = "spotpool-operator"
  resource_group_name = var.resource_group_name
  parent_id           = azurerm_user_assigned_identity.spotpool.id
  issuer              = data.azurerm_kubernetes_cluster.this.oidc_issuer_url
  subject             = "system:serviceaccount:${var.namespace}:spotpool-operator"
  audience            = ["api://AzureADTokenExchange"]
}

locals {
  # Which role is for what. What they allow is in ../roles, which a test holds against what the operator asks of Azure.
  scopes = {
    cluster      = data.azurerm_kubernetes_cluster.this.id
    nodes        = data.azurerm_resource_group.nodes.id
    subscription = data.azurerm_subscription.this.id
  }
  roles = { for name in keys(local.scopes) : name => jsondecode(file("${path.module}/../roles/${name}.json")) }
}

resource "azurerm_role_definition" "spotpool" {
  for_each = local.scopes

  # The names are the subscription's: one more cluster has roles of its own.
  name              = "${local.roles[each.key].Name} (${var.cluster_name})"
  description       = local.roles[each.key].Description
  scope             = data.azurerm_subscription.this.id
  assignable_scopes = [data.azurerm_subscription.this.id]

  permissions {
    actions = local.roles[each.key].Actions
  }
}

resource "azurerm_role_assignment" "spotpool" {
  for_each = local.scopes

  scope              = each.value
  role_definition_id = azurerm_role_definition.spotpool[each.key].role_definition_resource_id
  principal_id       = azurerm_user_assigned_identity.spotpool.principal_id
  principal_type     = "ServicePrincipal"
}
