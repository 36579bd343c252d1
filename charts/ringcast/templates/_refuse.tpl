{{/*
What the schema cannot tell: rules across values. Every mistake is found at once, and says what would be right.
*/}}

{{- define "ringcast.refuse" -}}
{{- $mistakes := concat
  (include "ringcast.refuse.names" . | fromJsonArray)
  (include "ringcast.refuse.values" . | fromJsonArray)
  (include "ringcast.refuse.scaling" . | fromJsonArray)
  (include "ringcast.refuse.config" . | fromJsonArray)
-}}
{{- if $mistakes -}}
{{- fail (printf "\n\n%s\n" (join "\n" $mistakes)) -}}
{{- end -}}
{{- end -}}

{{/* Where people put the secret itself, or an address with a login. Not by the schema: Helm 4 shows what does not match its patterns. */}}
{{- define "ringcast.refuse.names" -}}
{{- $values := .Values -}}
{{- $mistakes := list -}}
{{- range $name, $value := dict
  "existingSecret" $values.existingSecret
  "topology.rabbitmqCluster.connectionSecret" $values.topology.rabbitmqCluster.connectionSecret
  "topology.declare.existingSecret" $values.topology.declare.existingSecret
  "simulator.existingSecret" $values.simulator.existingSecret
-}}
{{- if and $value (not (regexMatch "^[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?$" $value)) -}}
{{- $mistakes = append $mistakes (printf "%s (not shown: it may be the secret itself) is no Secret's name: give a-z 0-9 - . alone" $name) -}}
{{- end -}}
{{- end -}}
{{- range $name, $value := dict
  "amqpUriKey" $values.amqpUriKey
  "autoscaling.keda.amqpUriKey" $values.autoscaling.keda.amqpUriKey
  "topology.declare.amqpUriKey" $values.topology.declare.amqpUriKey
-}}
{{- if and $value (not (regexMatch "^[-._a-zA-Z0-9]{1,253}$" $value)) -}}
{{- $mistakes = append $mistakes (printf "%s (not shown: it may be the URI itself) is no key of a Secret: give a-z A-Z 0-9 - _ . alone, as in amqp-uri, and put the URI into the Secret" $name) -}}
{{- end -}}
{{- end -}}
{{- if not (regexMatch "^[a-zA-Z0-9.-]+(:[0-9]+)?(/[a-z0-9._-]+)*$" $values.image.repository) -}}
{{- $mistakes = append $mistakes "image.repository (not shown: it may hold a login) is no image's name: give REGISTRY/NAME without https://, login, tag and digest; image.pullSecrets logs in" -}}
{{- end -}}
{{- $prometheus := $values.autoscaling.keda.prometheus -}}
{{- if not (regexMatch "^(bearer|basic|tls|custom|,)*$" ($prometheus.authModes | default "")) -}}
{{- $mistakes = append $mistakes "autoscaling.keda.prometheus.authModes (not shown) is none of bearer, basic, tls, custom, or several with a comma between them" -}}
{{- end -}}
{{- if regexMatch "(?i)(authorization|cookie|token|password|api-?key)[^,=]*=" ($prometheus.customHeaders | default "") -}}
{{- $mistakes = append $mistakes "autoscaling.keda.prometheus.customHeaders (not shown) holds a login, which would stand in the ScaledObject: give authModes, and a TriggerAuthentication in authenticationRef" -}}
{{- end -}}
{{- $mistakes | toJson -}}
{{- end -}}

{{- define "ringcast.refuse.values" -}}
{{- $mistakes := list -}}
{{- $values := .Values -}}
{{- if not $values.existingSecret -}}
{{- $mistakes = append $mistakes "existingSecret is missing: give the name of a Secret that holds the broker's URI (key amqp-uri, or what amqpUriKey says) and the files of keys that config names; `kubectl create secret generic` makes one, see the chart's README" -}}
{{- end -}}
{{- range $values.extraEnv -}}
{{- if hasPrefix "RINGCAST__" .name -}}
{{- $mistakes = append $mistakes (printf "extraEnv sets %s: set it below config, from which the chart computes ports, queues and the grace period; a secret belongs into a file of existingSecret" .name) -}}
{{- end -}}
{{- end -}}
{{- if and (has (toString $values.strategy.maxSurge) (list "0" "0%")) (has (toString $values.strategy.maxUnavailable) (list "0" "0%")) -}}
{{- $mistakes = append $mistakes "strategy.maxSurge and strategy.maxUnavailable are both 0, so that no update could ever begin: give maxSurge 1" -}}
{{- end -}}
{{- if and $values.simulator.enabled (not $values.simulator.existingSecret) -}}
{{- $mistakes = append $mistakes (printf "simulator.existingSecret is missing: make the simulator's identity once by `apns-simulator --identity apple --name %s`, then `kubectl create secret generic %s --from-file apple`, and give that name" (include "ringcast.simulator.name" .) (include "ringcast.simulator.name" .)) -}}
{{- end -}}
{{- with $values.topology -}}
{{- if and .enabled (eq (empty .rabbitmqCluster.name) (empty .rabbitmqCluster.connectionSecret)) -}}
{{- $mistakes = append $mistakes "topology.enabled needs to know the broker: give topology.rabbitmqCluster.name, of a RabbitmqCluster object, or .connectionSecret, a Secret with uri, username and password of the management API; one of the two" -}}
{{- end -}}
{{- if and .declare.enabled (not .declare.existingSecret) -}}
{{- $mistakes = append $mistakes "topology.declare.existingSecret is missing: give the name of a Secret that holds the URI of a user who may declare (key amqp-uri, or what topology.declare.amqpUriKey says); the workers' user should not" -}}
{{- end -}}
{{- end -}}
{{- $mistakes | toJson -}}
{{- end -}}

{{- define "ringcast.refuse.scaling" -}}
{{- $mistakes := list -}}
{{- $scaling := .Values.autoscaling -}}
{{- $keda := $scaling.keda -}}
{{- if gt (int $scaling.min) (int $scaling.max) -}}
{{- $mistakes = append $mistakes (printf "autoscaling.min is %d and autoscaling.max is %d: give a max that is not below min" (int $scaling.min) (int $scaling.max)) -}}
{{- else if and $keda.fallback.replicas (or (lt (int $keda.fallback.replicas) (int $scaling.min)) (gt (int $keda.fallback.replicas) (int $scaling.max))) -}}
{{- $mistakes = append $mistakes (printf "autoscaling.keda.fallback.replicas is %d: give a number from autoscaling.min, %d, to autoscaling.max, %d, or 0 for twice min" (int $keda.fallback.replicas) (int $scaling.min) (int $scaling.max)) -}}
{{- end -}}
{{- if and (eq (include "ringcast.scaler" .) "hpa") (not (dig "requests" "cpu" "" .Values.resources)) -}}
{{- $mistakes = append $mistakes "autoscaling.kind is hpa, which measures CPU against what is asked for: set resources.requests.cpu, e.g. 250m" -}}
{{- end -}}
{{- if eq (include "ringcast.scaler" .) "keda" -}}
{{- $monitor := .Values.monitoring.podMonitor.enabled -}}
{{- if and $keda.prometheus.serverAddress (not $keda.prometheus.query) (not (include "ringcast.monitored" (dict "root" . "enabled" $monitor))) -}}
{{- $why := ternary "is auto, and Helm sees no Prometheus operator in the cluster" "is false" (eq (toString $monitor) "auto") -}}
{{- $mistakes = append $mistakes (printf "autoscaling.keda.prometheus asks for series by the job that the PodMonitor gives them, and monitoring.podMonitor.enabled %s: give autoscaling.keda.prometheus.query with your own job, or let the chart make the PodMonitor (true)" $why) -}}
{{- end -}}
{{- $address := $keda.prometheus.serverAddress -}}
{{- if and $address (not (regexMatch "^https?://[^/?#@]+(/[^?#@]*)?$" $address)) -}}
{{- $mistakes = append $mistakes "autoscaling.keda.prometheus.serverAddress (not shown) is not the address of a Prometheus: give http://HOST:PORT; a login belongs into a TriggerAuthentication that authenticationRef names" -}}
{{- end -}}
{{- $amqp := (include "ringcast.config" . | fromJson).amqp -}}
{{- range $key := list "uri_file" "ca_file" "client_cert_file" "client_key_file" -}}
{{- $file := get $amqp $key -}}
{{- $own := or $keda.authenticationRef (and (eq $key "uri_file") $keda.amqpUriKey) -}}
{{- if and $file (not $own) (not (regexMatch (printf "^%s/[-._a-zA-Z0-9]+$" (include "ringcast.secretsDir" $)) $file)) -}}
{{- $mistakes = append $mistakes (printf "config.amqp.%s is not a file of existingSecret, so KEDA could not read it: put it there and give its key alone, or make a TriggerAuthentication of your own and name it in autoscaling.keda.authenticationRef" $key) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $mistakes | toJson -}}
{{- end -}}

{{/* Of Ringcast's own rules those that go across settings, are about durations, or ask for a sentence; `ringcast check` knows all. */}}
{{- define "ringcast.refuse.config" -}}
{{- $mistakes := concat
  (include "ringcast.refuse.broker" . | fromJsonArray)
  (include "ringcast.refuse.apps" . | fromJsonArray)
  (include "ringcast.refuse.files" . | fromJsonArray)
-}}
{{- $config := .Values.config | default dict -}}
{{- $bounds := list
  (list "apns" "request_timeout" "100ms" "60s")
  (list "apns" "reload_interval" "0s" "1h")
  (list "worker" "deadline_max" "1s" "10m")
  (list "worker" "answer_grace" "0s" "30s")
  (list "worker" "shutdown_grace" "1s" "10m")
-}}
{{- range $bounds -}}
{{- $text := get (get $config (index . 0) | default dict) (index . 1) -}}
{{- if $text -}}
{{- $is := include "ringcast.milliseconds" $text | int64 -}}
{{- if or (lt $is (include "ringcast.milliseconds" (index . 2) | int64)) (gt $is (include "ringcast.milliseconds" (index . 3) | int64)) -}}
{{- $mistakes = append $mistakes (printf "config.%s.%s is %s: give %s to %s" (index . 0) (index . 1) $text (index . 2) (index . 3)) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $worker := $config.worker | default dict -}}
{{- $deadline := $worker.deadline_max | default "5m" -}}
{{- with $worker.ring_time_min -}}
{{- if ge (include "ringcast.milliseconds" . | int64) (include "ringcast.milliseconds" $deadline | int64) -}}
{{- $mistakes = append $mistakes (printf "config.worker.ring_time_min is %s, and no deadline lies further ahead than deadline_max, %s, so that no call would ever ring: give less" . $deadline) -}}
{{- end -}}
{{- end -}}
{{- $listen := dig "listen" "0.0.0.0:9090" ($config.admin | default dict) -}}
{{- if not (and (regexMatch "^(0[.]0[.]0[.]0|\\[::\\]):[1-9][0-9]{0,4}$" $listen) (le (regexFind "[0-9]+$" $listen | int) 65535)) -}}
{{- $mistakes = append $mistakes (printf "config.admin.listen is %s: give 0.0.0.0:PORT or [::]:PORT, since the kubelet and Prometheus come from outside and must know the port" $listen) -}}
{{- end -}}
{{- $apns := $config.apns | default dict -}}
{{- $least := dig "connections" 2 $apns | int -}}
{{- $most := dig "connections_max" 8 $apns | int -}}
{{- if gt $least $most -}}
{{- $mistakes = append $mistakes (printf "config.apns.connections is %d and connections_max is %d: give a connections_max that is not below connections" $least $most) -}}
{{- end -}}
{{- range $key := list "production" "sandbox" -}}
{{- if not (regexMatch "^https://[^/?#@]+$" (dig $key "https://api.push.apple.com" $apns)) -}}
{{- $mistakes = append $mistakes (printf "config.apns.%s (not shown) is not https://HOST or https://HOST:PORT: give that, and nothing after it" $key) -}}
{{- end -}}
{{- end -}}
{{- $proxy := $apns.proxy | default "" -}}
{{- if contains "@" $proxy -}}
{{- $mistakes = append $mistakes "config.apns.proxy (not shown) holds a login: give http://HOST:PORT, and user:password in a file of existingSecret that proxy_credentials_file names" -}}
{{- else if and $proxy (not (regexMatch "^http://[^/?#]+:[0-9]+$" $proxy)) -}}
{{- $mistakes = append $mistakes "config.apns.proxy (not shown) is not http://HOST:PORT: give that, and nothing after it" -}}
{{- end -}}
{{- $otlp := dig "otlp_endpoint" "" ($config.traces | default dict) -}}
{{- if contains "@" $otlp -}}
{{- $mistakes = append $mistakes "config.traces.otlp_endpoint (not shown) holds a login: put an authorization header into a file of existingSecret that headers_file names" -}}
{{- else if and $otlp (not (regexMatch "^https?://[^/?#]" $otlp)) -}}
{{- $mistakes = append $mistakes "config.traces.otlp_endpoint (not shown) is not a URL: give http://HOST:4318 or https://HOST/PATH" -}}
{{- end -}}
{{- $mistakes | toJson -}}
{{- end -}}

{{- define "ringcast.refuse.broker" -}}
{{- $mistakes := list -}}
{{- $amqp := (.Values.config | default dict).amqp | default dict -}}
{{- range $amqp.hosts -}}
{{- if regexMatch "[/@]" . -}}
{{- $mistakes = append $mistakes "config.amqp.hosts (not shown: it may hold a password) has something else than a host: give HOST or HOST:PORT; login and vhost are the URI's" -}}
{{- end -}}
{{- end -}}
{{- range $amqp.invites -}}
{{- if or (hasPrefix "amq." .) (has . (list "ringcast.dead" "ringcast.expired" "ringcast.ended" "ringcast.outcomes" "ringcast.invalid-tokens" "ringcast.quarantined-tokens")) -}}
{{- $mistakes = append $mistakes (printf "config.amqp.invites names %s, which is the queue of something else: name a queue of invites" .) -}}
{{- end -}}
{{- end -}}
{{- with $amqp.results_exchange -}}
{{- if or (hasPrefix "amq." .) (has . (list "ringcast.dead" "ringcast.ended" "ringcast.live")) -}}
{{- $mistakes = append $mistakes (printf "config.amqp.results_exchange is %s, which is the exchange of something else: give a topic exchange of its own" .) -}}
{{- end -}}
{{- end -}}
{{- $mistakes | toJson -}}
{{- end -}}

{{- define "ringcast.refuse.apps" -}}
{{- $mistakes := list -}}
{{- $apps := (.Values.config | default dict).apps -}}
{{- if not $apps -}}
{{- $mistakes = append $mistakes "config.apps is empty: name at least one app, as in config.apps.acme with bundle_id and auth" -}}
{{- end -}}
{{- range $name, $app := $apps -}}
{{- if or (eq $name "malformed") (not (regexMatch "^[a-z0-9_-]{1,64}$" $name)) -}}
{{- $mistakes = append $mistakes (printf "config.apps.%s is not a name for an app: give 1 to 64 of a-z 0-9 _ -, and not \"malformed\"" $name) -}}
{{- end -}}
{{- if hasSuffix ".voip" (lower $app.bundle_id) -}}
{{- $mistakes = append $mistakes (printf "config.apps.%s.bundle_id ends in .voip, which the worker appends itself: leave it off" $name) -}}
{{- end -}}
{{- if and (not $app.auth) (not $.Values.simulator.enabled) -}}
{{- $mistakes = append $mistakes (printf "config.apps.%s.auth is missing: give team_id, key_id and key_file of a key from Apple, or cert_file and key_file of a certificate" $name) -}}
{{- end -}}
{{- range $table := list "auth" "auth_sandbox" -}}
{{- with get $app $table -}}
{{- if and .cert_file (or .team_id .key_id) -}}
{{- $mistakes = append $mistakes (printf "config.apps.%s.%s has cert_file beside team_id or key_id: give a certificate with its key_file, or a key with team_id and key_id" $name $table) -}}
{{- else if and (not .cert_file) (not (and .team_id .key_id)) -}}
{{- $mistakes = append $mistakes (printf "config.apps.%s.%s has a key without team_id or key_id: give both, ten of A-Z 0-9 each, or a cert_file" $name $table) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $mistakes | toJson -}}
{{- end -}}

{{/* What shall be a file's name and is something else may be the secret itself: it is never shown, nor rendered. */}}
{{- define "ringcast.refuse.files" -}}
{{- $config := .Values.config | default dict -}}
{{- $files := dict -}}
{{- range $section, $keys := dict "amqp" (list "uri_file" "ca_file" "client_cert_file" "client_key_file") "apns" (list "ca_file" "proxy_credentials_file") "traces" (list "ca_file" "headers_file") -}}
{{- range $keys -}}
{{- $_ := set $files (printf "config.%s.%s" $section .) (get (get $config $section | default dict) .) -}}
{{- end -}}
{{- end -}}
{{- range $name, $app := $config.apps -}}
{{- range $table := list "auth" "auth_sandbox" -}}
{{- range list "key_file" "cert_file" -}}
{{- $_ := set $files (printf "config.apps.%s.%s.%s" $name $table .) (get (get $app $table | default dict) .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- $mistakes := list -}}
{{- range $name, $file := $files -}}
{{- if and $file (not (regexMatch "^(/[^\\n:]+|[-._a-zA-Z0-9]+)$" $file)) -}}
{{- $mistakes = append $mistakes (printf "%s (not shown: it may be the secret itself) is no file's name: give a key of existingSecret, as in AuthKey_KEY1234567.p8, or a path that begins with /" $name) -}}
{{- end -}}
{{- end -}}
{{- $mistakes | toJson -}}
{{- end -}}
