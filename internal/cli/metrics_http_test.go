package cli

import (
	"context"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

// newPage serves a page at /page of a new socket, and returns who asks for it.
func newPage(t *testing.T, page string) *http.Client {
	t.Helper()
	path := filepath.Join(t.TempDir(), "socket")
	socket, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		servePage(socket, "/page", "text/x-test", func(w io.Writer) { io.WriteString(w, page) }, logrus.New())
	}()
	transport := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		socket.Close()
		<-ended // or the service does not end with its socket
	})
	return &http.Client{Transport: transport}
}

func TestServePage(t *testing.T) {
	const page = "what there is to tell\n"
	client := newPage(t, page)
	for _, tt := range []struct {
		method, path, header string
		status               int
		body                 string
	}{
		{"GET", "/page", "", http.StatusOK, page},
		{"GET", "/page?x=1", "", http.StatusOK, page},
		{"HEAD", "/page", "", http.StatusOK, ""},
		{"GET", "/", "", http.StatusNotFound, "Not Found\n"},
		{"GET", "/page/x", "", http.StatusNotFound, "Not Found\n"},
		{"DELETE", "/page", "", http.StatusMethodNotAllowed, "Method Not Allowed\n"},
		{"GET", "/page", strings.Repeat("x", 2*http.DefaultMaxHeaderBytes), http.StatusBadRequest, ""},
		{"GET", "/page", "", http.StatusOK, page}, // none of that has ended the service
	} {
		r, err := http.NewRequestWithContext(t.Context(), tt.method, "http://x"+tt.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if tt.header != "" {
			r.Header.Set("X-Test", tt.header)
		}
		a, err := client.Do(r)
		if err != nil {
			if tt.status != http.StatusBadRequest { // else it is cut off while it writes
				t.Errorf("%s %s: %v", tt.method, tt.path, err)
			}
			continue
		}
		body, err := io.ReadAll(a.Body)
		a.Body.Close()
		if err != nil || a.StatusCode != tt.status || tt.status != http.StatusBadRequest && string(body) != tt.body {
			t.Errorf("%s %s: %s, %q, %v; want %d, %q", tt.method, tt.path, a.Status, body, err, tt.status, tt.body)
		}
		if tt.status == http.StatusOK && (a.Header.Get("Content-Type") != "text/x-test" || a.ContentLength != int64(len(page))) {
			t.Errorf("%s %s: %v, %d bytes", tt.method, tt.path, a.Header, a.ContentLength)
		}
	}
}

func TestServePageToBadClients(t *testing.T) {
	client := newPage(t, "page")
	dial := client.Transport.(*http.Transport).DialContext
	for _, tt := range []struct{ send, want string }{
		{"", ""},
		{"\x00\x01\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"},
		{"GET /page\r\n\r\n", "HTTP/1.1 400 Bad Request\r\n"},
		{"GET /page HTTP/1.0\r\n\r\n", "HTTP/1.1 200 OK\r\n"},
	} {
		c, err := dial(t.Context(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		silent, err := dial(t.Context(), "", "") // which holds up nobody
		if err != nil {
			t.Fatal(err)
		}
		defer silent.Close()
		if _, err := io.WriteString(c, tt.send); err != nil {
			t.Fatal(err)
		}
		if err := c.(*net.UnixConn).CloseWrite(); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil || !strings.HasPrefix(string(got), tt.want) || tt.want == "" && len(got) > 0 {
			t.Errorf("%q: answer %q, %v", tt.send, got, err)
		}
	}
}
