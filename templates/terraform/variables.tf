variable "project" {
  type        = string
  description = "The project that all of this is made in."
}

variable "region" {
  type        = string
  description = "Where Dataflow runs, and the bucket lies."
  default     = "europe-west4"
}

variable "bucket" {
  type        = string
  description = "The bucket to be made: models, inputs, outputs, templates and temporary files."
}

variable "image" {
  type        = string
  description = "The image of templates/flex, as LOCATION-docker.pkg.dev/PROJECT/REPOSITORY/IMAGE:TAG."

  validation {
    condition     = can(regex("^[a-z0-9-]+-docker\\.pkg\\.dev/[^/]+/[^/]+/.+[:@].+$", var.image))
    error_message = "Give an image in Artifact Registry with its tag or digest, as in europe-west4-docker.pkg.dev/my-project/headrace/headrace:1."
  }
}

variable "model" {
  type        = string
  description = "The model, below the bucket."
  default     = "models/digits"
}

variable "input" {
  type        = string
  description = "Glob of Parquet files, below the bucket. It may only grow, since each night computes what is new."
  default     = "in/**/*.parquet"
}

variable "output" {
  type        = string
  description = "Folder of the predictions, below the bucket. Only there, and under tmp/, may workers write."
  default     = "out"

  validation {
    condition     = can(regex("^[^/].*[^/]$", var.output))
    error_message = "Give a folder without a slash at either end, as in out or predictions/digits."
  }
}

variable "schedule" {
  type        = string
  description = "When, in cron's form."
  default     = "15 2 * * *"
}

variable "time_zone" {
  type    = string
  default = "Etc/UTC"
}

variable "alert_emails" {
  type        = list(string)
  description = "Who gets a mail when a night fails. Without any address, only the console shows the alerts."
  default     = []
}

variable "stalled_minutes" {
  type        = number
  description = "A job that finishes no shard for so long is reported."
  default     = 60
}

variable "most_bad_rows" {
  type        = number
  description = "A job with more rows in dead letters is reported."
  default     = 0
}
