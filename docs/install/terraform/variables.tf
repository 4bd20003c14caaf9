variable "cluster_name" {
  description = "The AKS cluster. It needs its OIDC issuer and workload identity."
  type        = string
}

variable "resource_group_name" {
  description = "The resource group of the cluster."
  type        = string
}

variable "namespace" {
  description = "The namespace that the chart is installed into."
  type        = string
  default     = "spotpool-system"
}

variable "spot" {
  description = "Spot agent pools by name: several sizes and families, so that Azure seldom takes all at once. Empty: `create` in a SpotPool makes them."
  type        = map(object({ vm_size = string, count = number }))
  default     = {}
}

variable "on_demand" {
  description = "On-demand agent pools by name: what stands in while spot is missing."
  type        = map(object({ vm_size = string, count = number }))
  default     = {}
}

variable "zones" {
  description = "Availability zones of the agent pools."
  type        = list(string)
  default     = null
}
