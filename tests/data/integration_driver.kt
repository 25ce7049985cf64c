// Runs a generated file's functions on raw binary tensors, as integration_driver.cpp does; the same words.

package edgesam.deploy

import java.io.File
import java.nio.ByteBuffer
import java.nio.ByteOrder
import kotlin.system.exitProcess

internal fun readFloats(path: String): FloatArray {
    val buffer = ByteBuffer.wrap(File(path).readBytes()).order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer()
    return FloatArray(buffer.remaining()) { buffer.get(it) }
}

internal fun readInts(path: String): IntArray {
    val buffer = ByteBuffer.wrap(File(path).readBytes()).order(ByteOrder.LITTLE_ENDIAN).asIntBuffer()
    return IntArray(buffer.remaining()) { buffer.get(it) }
}

internal fun write(path: String, floats: FloatArray) {
    val buffer = ByteBuffer.allocate(4 * floats.size).order(ByteOrder.LITTLE_ENDIAN)
    buffer.asFloatBuffer().put(floats)
    File(path).writeBytes(buffer.array())
}

internal fun write(folder: String, tensor: Tensor) {
    val path = folder + "/" + tensor.name + ".bin"
    if (tensor.bytes.isEmpty()) write(path, tensor.floats) else File(path).writeBytes(tensor.bytes)
    println(tensor.name + " " + tensor.shape.joinToString(" "))
}

fun main(words: Array<String>) {
    try {
        drive(words.toList())
    } catch (error: IllegalArgumentException) {
        System.err.println(error.message)
        exitProcess(1)
    }
}
