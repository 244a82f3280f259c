# Who may do what; docs/security.md tells why. A worker cannot change the model, the inputs or the template.

resource "google_service_account" "worker" {
  account_id   = "headrace-worker"
  display_name = "headrace: workers and the template's launcher"
}

resource "google_service_account" "scheduler" {
  account_id   = "headrace-scheduler"
  display_name = "headrace: starts the template"
}

resource "google_project_iam_member" "worker" {
  project = var.project
  role    = "roles/dataflow.worker"
  member  = google_service_account.worker.member
}

resource "google_artifact_registry_repository_iam_member" "worker" {
  project    = local.repository[1]
  location   = trimsuffix(local.repository[0], "-docker.pkg.dev")
  repository = local.repository[2]
  role       = "roles/artifactregistry.reader"
  member     = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "worker_reads" {
  bucket = google_storage_bucket.data.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.worker.member
}

resource "google_storage_bucket_iam_member" "worker_writes" {
  for_each = toset([var.output, "tmp"])

  bucket = google_storage_bucket.data.name
  role   = "roles/storage.objectUser"
  member = google_service_account.worker.member

  condition {
    title      = "below ${each.key}"
    expression = "resource.name.startsWith('projects/_/buckets/${google_storage_bucket.data.name}/objects/${each.key}/')"
  }
}

resource "google_project_iam_member" "scheduler" {
  project = var.project
  role    = "roles/dataflow.developer"
  member  = google_service_account.scheduler.member
}

resource "google_service_account_iam_member" "scheduler" {
  service_account_id = google_service_account.worker.name
  role               = "roles/iam.serviceAccountUser"
  member             = google_service_account.scheduler.member
}

resource "google_storage_bucket_iam_member" "scheduler" {
  bucket = google_storage_bucket.data.name
  role   = "roles/storage.objectViewer"
  member = google_service_account.scheduler.member

  condition {
    title      = "the template"
    expression = "resource.name.startsWith('projects/_/buckets/${google_storage_bucket.data.name}/objects/templates/')"
  }
}
