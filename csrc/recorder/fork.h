// Takes the mutexes around a fork: the child must find none locked by a thread that it does not
// have.
#pragma once

namespace gradext::recorder {

// Once per process, at the first recording.
void register_fork_handlers();

}  // namespace gradext::recorder
