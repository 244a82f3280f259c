terraform {
  required_version = ">= 1.5"

  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "~> 6.50"
    }
  }
}

provider "google" {
  project = var.project
  region  = var.region
}

locals {
  root       = "gs://${google_storage_bucket.data.name}"
  repository = split("/", var.image)

  # The same bodies as templates/scheduler has.
  values = {
    PROJECT           = var.project
    REGION            = var.region
    TEMPLATE          = "${local.root}/${google_storage_bucket_object.template.name}"
    SCHEDULER_ACCOUNT = google_service_account.scheduler.email
    WORKER_ACCOUNT    = google_service_account.worker.email
    TEMP              = "${local.root}/tmp"
    MODEL             = "${local.root}/${var.model}"
    INPUT             = "${local.root}/${var.input}"
    OUTPUT            = "${local.root}/${var.output}"
    SCHEDULE          = var.schedule
    TIME_ZONE         = var.time_zone
  }
  launch = jsondecode(templatefile("${path.module}/../scheduler/launch.json", local.values))
  job    = jsondecode(templatefile("${path.module}/../scheduler/job.json", local.values))
}

resource "google_project_service" "api" {
  for_each = toset(["artifactregistry", "cloudscheduler", "compute", "dataflow", "logging", "monitoring"])

  service            = "${each.key}.googleapis.com"
  disable_on_destroy = false
}

resource "google_storage_bucket" "data" {
  name                        = var.bucket
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  lifecycle_rule {
    condition {
      age            = 7
      matches_prefix = ["tmp/"]
    }
    action {
      type = "Delete"
    }
  }
}

resource "google_storage_bucket_object" "template" {
  bucket       = google_storage_bucket.data.name
  name         = "templates/headrace.json"
  content_type = "application/json"
  content = jsonencode({
    image    = var.image
    sdkInfo  = { language = "PYTHON" }
    metadata = jsondecode(file("${path.module}/../flex/metadata.json"))
  })
}

resource "google_cloud_scheduler_job" "nightly" {
  name             = "headrace-nightly"
  region           = var.region
  description      = local.job.description
  schedule         = local.job.schedule
  time_zone        = local.job.timeZone
  attempt_deadline = local.job.attemptDeadline

  retry_config {
    retry_count          = local.job.retryConfig.retryCount
    min_backoff_duration = local.job.retryConfig.minBackoffDuration
    max_backoff_duration = local.job.retryConfig.maxBackoffDuration
    max_doublings        = local.job.retryConfig.maxDoublings
  }

  http_target {
    uri         = local.job.httpTarget.uri
    http_method = local.job.httpTarget.httpMethod
    headers     = local.job.httpTarget.headers
    body        = base64encode(jsonencode(local.launch))

    oauth_token {
      service_account_email = google_service_account.scheduler.email
      scope                 = local.job.httpTarget.oauthToken.scope
    }
  }

  depends_on = [google_project_service.api]
}
