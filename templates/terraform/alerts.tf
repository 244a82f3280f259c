# What is watched, and who hears of it. Counters are headrace's own, which Dataflow shows as job/user_counter.

locals {
  counter = "dataflow_googleapis_com:job_user_counter{monitored_resource=\"dataflow_job\",metric_name="
  alerts = {
    no_progress = {
      name  = "no shard finished in ${var.stalled_minutes} minutes"
      query = "sum by (job_id) (max_over_time(${local.counter}\"shards\"}[${var.stalled_minutes}m]) - min_over_time(${local.counter}\"shards\"}[${var.stalled_minutes}m])) < 1"
      # A job that has not run for so long has not stalled, and one that has ended reports nothing.
      lasts = "${var.stalled_minutes * 60}s"
      help  = "The job runs and finishes no shard. Its page in Dataflow's console shows the step that waits; `shards_started` tells whether a shard is in work. A shard that one worker computes for longer than this needs a larger `stalled_minutes`, or a smaller `--shard_bytes`."
    }
    dead_letters = {
      name  = "more than ${var.most_bad_rows} rows in dead letters"
      query = "sum by (job_id) (${local.counter}\"bad_rows\"}) > ${var.most_bad_rows}"
      lasts = "0s"
      help  = "The files in `_headrace/dead_letters/` of the output have each row and the reason."
    }
  }
}

resource "google_monitoring_notification_channel" "mail" {
  for_each = toset(var.alert_emails)

  display_name = each.key
  type         = "email"
  labels       = { email_address = each.key }

  depends_on = [google_project_service.api]
}

resource "google_monitoring_alert_policy" "job_failed" {
  display_name          = "headrace: a job failed"
  combiner              = "OR"
  notification_channels = [for channel in google_monitoring_notification_channel.mail : channel.id]

  conditions {
    display_name = "a Dataflow job failed"

    condition_matched_log {
      filter = "resource.type=\"dataflow_step\" AND log_id(\"dataflow.googleapis.com/job-message\") AND severity>=ERROR AND textPayload:\"Workflow failed\""
    }
  }

  alert_strategy {
    notification_rate_limit {
      period = "3600s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "The job's log names the file, row or object. The same launch goes on from what is done: `gcloud scheduler jobs run headrace-nightly`."
  }
}

resource "google_monitoring_alert_policy" "launch_refused" {
  display_name          = "headrace: a launch was refused"
  combiner              = "OR"
  notification_channels = [for channel in google_monitoring_notification_channel.mail : channel.id]

  conditions {
    display_name = "Cloud Scheduler got no job"

    condition_matched_log {
      filter = "resource.type=\"cloud_scheduler_job\" AND resource.labels.job_id=\"${google_cloud_scheduler_job.nightly.name}\" AND severity>=ERROR"
    }
  }

  alert_strategy {
    notification_rate_limit {
      period = "3600s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = "Status 409 (ALREADY_EXISTS): the night before still runs, and Dataflow has at most one active job of a name. Anything else is in the log's `jsonPayload`."
  }
}

resource "google_monitoring_alert_policy" "counters" {
  for_each = local.alerts

  display_name          = "headrace: ${each.value.name}"
  combiner              = "OR"
  notification_channels = [for channel in google_monitoring_notification_channel.mail : channel.id]

  conditions {
    display_name = each.value.name

    condition_prometheus_query_language {
      query               = each.value.query
      duration            = each.value.lasts
      evaluation_interval = "60s"
    }
  }

  documentation {
    mime_type = "text/markdown"
    content   = each.value.help
  }
}

resource "google_monitoring_dashboard" "headrace" {
  dashboard_json = templatefile("${path.module}/dashboard.json", { NIGHTLY = google_cloud_scheduler_job.nightly.name })
}
