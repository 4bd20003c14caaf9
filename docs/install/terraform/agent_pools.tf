# The counts are the operator's once a SpotPool names the agent pool, so that Terraform must not set them back.

resource "azurerm_kubernetes_cluster_node_pool" "spot" {
  for_each = var.spot

  name                  = each.key
  kubernetes_cluster_id = data.azurerm_kubernetes_cluster.this.id
  mode                  = "User"
  vm_size               = each.value.vm_size
  node_count            = each.value.count
  zones                 = var.zones
  priority              = "Spot"
  eviction_policy       = "Delete"
  # Up to the price on demand: who bids lower is evicted for the price as well.
  spot_max_price = -1
  # AKS sets both; without them here Terraform would make the agent pool anew.
  node_labels = { "kubernetes.azure.com/scalesetpriority" = "spot" }
  node_taints = ["kubernetes.azure.com/scalesetpriority=spot:NoSchedule"]

  lifecycle {
    ignore_changes = [node_count, node_labels]
  }
}

resource "azurerm_kubernetes_cluster_node_pool" "on_demand" {
  for_each = var.on_demand

  name                  = each.key
  kubernetes_cluster_id = data.azurerm_kubernetes_cluster.this.id
  mode                  = "User"
  vm_size               = each.value.vm_size
  node_count            = each.value.count
  zones                 = var.zones

  lifecycle {
    ignore_changes = [node_count, node_labels]
  }
}
