// Records the Python line at which each graph node is made.
#pragma once

namespace gradext::recorder {

// From autograd's present sequence number on, this thread's nodes are made at its present stack.
void note_nodes();

}  // namespace gradext::recorder
