package vm

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"sync"
	"time"
)

// qmp speaks to QEMU's monitor, one command at a time.
type qmp struct {
	mu   sync.Mutex
	conn net.Conn
	in   *json.Decoder
}

// answer is any line of the monitor: a greeting, an event, a result, an error.
type answer struct {
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
}

func greet(conn net.Conn) (*qmp, error) {
	q := &qmp{conn: conn, in: json.NewDecoder(conn)}
	var greeting json.RawMessage
	if err := q.in.Decode(&greeting); err != nil {
		conn.Close()
		return nil, fmt.Errorf("qmp greeting: %w", err)
	}
	if _, err := q.execute("qmp_capabilities", nil); err != nil {
		conn.Close()
		return nil, err
	}
	return q, nil
}

func (q *qmp) execute(command string, args any) (json.RawMessage, error) {
	request := map[string]any{"execute": command}
	if args != nil {
		request["arguments"] = args
	}
	if err := json.NewEncoder(q.conn).Encode(request); err != nil {
		return nil, fmt.Errorf("qmp %s: %w", command, err)
	}
	for {
		var a answer
		if err := q.in.Decode(&a); err != nil {
			return nil, fmt.Errorf("qmp %s: %w", command, err)
		}
		switch {
		case a.Error != nil:
			return nil, fmt.Errorf("qmp %s: %s: %s", command, a.Error.Class, a.Error.Desc)
		case a.Return != nil:
			return a.Return, nil
		}
	}
}

// Monitor runs a QMP command, such as "stop", "cont" or "system_reset", and returns
// its result. It does not wait longer than ctx allows: a monitor that a back-end
// holds up is what some tests look for.
func (v *VM) Monitor(ctx context.Context, command string, args any) (json.RawMessage, error) {
	v.qmp.mu.Lock()
	defer v.qmp.mu.Unlock()
	release := context.AfterFunc(ctx, func() { v.qmp.conn.SetDeadline(time.Unix(1, 0)) })
	defer release()
	result, err := v.qmp.execute(command, args)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("qmp %s: %w", command, context.Cause(ctx))
	}
	return result, err
}
