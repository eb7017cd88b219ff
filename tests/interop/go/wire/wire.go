// Package wire has the messages of Conveyor as its Go programs decode them.
package wire

type DriverMessage struct {
	Event   string `json:"event"`
	Payload string `json:"payload"`
	ID      string `json:"id"`
	RunID   string `json:"run_id"`
}

// Resource decodes metadata as the SDK does: a value that is no string makes it drop the message.
type Resource struct {
	ID       string            `json:"id"`
	Name     string            `json:"name"`
	Pipeline string            `json:"pipeline,omitempty"`
	Resource string            `json:"resource"`
	Metadata map[string]string `json:"metadata"`
	Spec     any               `json:"spec"`
}

type DriverResult struct {
	Success bool   `json:"success"`
	Message string `json:"message"`
	Data    any    `json:"data"`
	Driver  string `json:"driver"`
}

type PipelineEvent struct {
	Event        string       `json:"event"`
	RunID        string       `json:"run_id"`
	Resource     Resource     `json:"resource"`
	DriverResult DriverResult `json:"driverresult"`
}

type Log struct {
	RunID     string `json:"runid"`
	Driver    string `json:"driver"`
	Pipeline  string `json:"pipeline"`
	Timestamp string `json:"timestamp"`
	Message   string `json:"message"`
}
