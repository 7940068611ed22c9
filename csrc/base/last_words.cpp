#include "base/last_words.h"

#include <string>

#ifndef _WIN32
#include <fcntl.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <csignal>
#endif

namespace py = pybind11;

namespace gradext::base {
namespace {

#ifndef _WIN32
struct Words {
  std::string text;
  std::string path;  // "": stderr
  pid_t owner;       // a child of fork() has not to say what its parent knows
};

std::atomic<Words*> words{nullptr};

struct Watched {
  int number;
  bool is_fault;  // by the instruction that runs, which faults again when the handler is left
  bool may_be_faulthandlers;
  bool is_ours = false;
  struct sigaction before{};
};

// All that end a process where nobody handles them, but SIGINT, which Python handles.
Watched watched[] = {
    {SIGTERM, false, false},
    {SIGHUP, false, false},
    {SIGQUIT, false, false},
    {SIGALRM, false, false},
    {SIGUSR1, false, false},
    {SIGUSR2, false, false},
    {SIGXCPU, false, false},
    {SIGABRT, false, true},
    {SIGSEGV, true, true},
    {SIGBUS, true, true},
    {SIGFPE, true, true},
    {SIGILL, true, true},
};

// Whether a write neither waits nor raises SIGPIPE. Async-signal-safe.
bool is_ready(int file) {
  constexpr int kPatience = 1000;  // milliseconds
  pollfd asked{file, POLLOUT, 0};
  int ready = 0;
  do {
    ready = poll(&asked, 1, kPatience);
  } while (ready < 0 && errno == EINTR);
  return ready == 1 && asked.revents == POLLOUT;
}

// Where nobody reads what is written, the rest is not said: the process has to end. Async-signal-
// safe.
void say(const Words& said) {
  constexpr size_t kOnce = PIPE_BUF;  // a pipe that is ready takes so much at once
  const bool in_file = !said.path.empty();
  const int file =
      in_file ? open(said.path.c_str(), O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666) : 2;
  const char* at = said.text.data();
  size_t left = said.text.size();
  while (file >= 0 && left > 0 && is_ready(file)) {
    const ssize_t written = write(file, at, std::min(left, kOnce));
    if (written < 0 && errno != EINTR) {
      break;
    }
    if (written > 0) {
      at += written;
      left -= static_cast<size_t>(written);
    }
  }
  if (in_file && file >= 0) {
    close(file);
  }
}

// Async-signal-safe.
void on_signal(int number, siginfo_t* info, void*) {
  const int kept = errno;
  const Words* said = words.load();
  // One thread says it. What it points to is never freed: the process ends.
  if (said != nullptr && said->owner == getpid() && words.exchange(nullptr) != nullptr) {
    say(*said);
  }
  bool comes_again = false;
  for (Watched& one : watched) {
    if (one.number == number) {
      sigaction(number, &one.before, nullptr);
      comes_again = one.is_fault && info != nullptr && info->si_code > 0;
    }
  }
  if (!comes_again) {
    raise(number);  // it is blocked here, and arrives as soon as this returns
  }
  errno = kept;
}

bool is_ours(const struct sigaction& disposition) {
  return (disposition.sa_flags & SA_SIGINFO) != 0 && disposition.sa_sigaction == &on_signal;
}

void listen(bool has_faulthandler) {
  for (Watched& one : watched) {
    struct sigaction found{};
    if (sigaction(one.number, nullptr, &found) != 0 || is_ours(found)) {
      continue;
    }
    const bool is_default = (found.sa_flags & SA_SIGINFO) == 0 && found.sa_handler == SIG_DFL;
    const bool is_ignored = (found.sa_flags & SA_SIGINFO) == 0 && found.sa_handler == SIG_IGN;
    if (!is_default && (is_ignored || !has_faulthandler || !one.may_be_faulthandlers)) {
      continue;
    }
    one.before = found;
    struct sigaction ours{};
    ours.sa_sigaction = &on_signal;
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK;
    sigemptyset(&ours.sa_mask);
    one.is_ours = sigaction(one.number, &ours, nullptr) == 0;
  }
}

void listen_no_more() {
  for (Watched& one : watched) {
    struct sigaction found{};
    if (one.is_ours && sigaction(one.number, nullptr, &found) == 0 && is_ours(found)) {
      sigaction(one.number, &one.before, nullptr);
    }
    one.is_ours = false;
  }
}

// Under the GIL.
void set_last_words(const std::string& text, const std::string& path, bool has_faulthandler) {
  static Words* older = nullptr;
  if (text.empty()) {
    listen_no_more();
  }
  Words* next = text.empty() ? nullptr : new Words{text, path, getpid()};
  Words* last = words.exchange(next);
  if (!text.empty()) {
    listen(has_faulthandler);
  }
  // A handler on another thread may be reading the last one, and then the process ends: what is
  // freed is the one before it.
  delete older;
  older = last;
}
#else
void set_last_words(const std::string&, const std::string&, bool) {}
#endif

}  // namespace

void bind_last_words(py::module_& m) {
  // What is printed, on stderr or at the end of the file `path`, if a signal ends the process from
  // now on; "" for nothing, and no handler is left.
  m.def(
      "set_last_words",
      [](const py::bytes& text, const std::string& path, bool has_faulthandler) {
        set_last_words(text, path, has_faulthandler);
      },
      py::arg("text"),
      py::arg("path") = "",
      py::arg("has_faulthandler") = false);
}

}  // namespace gradext::base
